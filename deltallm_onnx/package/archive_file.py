"""What a static archive for iOS says about itself, read without a linker.

Formats: ar(5) with BSD's and GNU's long names; Mach-O as in Apple's <mach-o/loader.h> and <mach-o/nlist.h>.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

#: cputype → name of the processor, as `uname -m` gives it on Linux.
MACHINES = {0x0100000C: "aarch64", 0x01000007: "x86_64"}
#: platform of LC_BUILD_VERSION → name.
PLATFORMS = {1: "macos", 2: "ios", 3: "tvos", 4: "watchos", 6: "mac catalyst", 7: "ios simulator"}

_MAGIC = b"!<arch>\n"
_UNIVERSAL = (b"\xca\xfe\xba\xbe", b"\xca\xfe\xba\xbf")
_MEMBER_HEADER = 60
_BSD_NAME = b"#1/"
#: Members that are indices, not objects: GNU's and BSD's.
_INDICES = ("/", "//", "/SYM64/", "__.SYMDEF", "__.SYMDEF SORTED", "__.SYMDEF_64", "__.SYMDEF_64 SORTED")

_MACHO_64 = 0xFEEDFACF
_HEADER = struct.Struct("<IiiIIIII")
_COMMAND = struct.Struct("<II")
_SYMBOL_TABLE = struct.Struct("<IIII")
_NLIST = struct.Struct("<IBBHQ")
_LC_SYMTAB, _LC_BUILD_VERSION = 0x02, 0x32
#: Commands of objects made for older systems, each for one platform.
_OLDER = {0x24: 1, 0x25: 2, 0x2F: 3, 0x30: 4}
_EXTERNAL, _TYPE, _IN_SECTION = 0x01, 0x0E, 0x0E


@dataclasses.dataclass(frozen=True)
class ArchiveFile:
    """A static archive of Mach-O objects.

    Attributes:
        path: the file.
        machines: processors that its objects are built for.
        platforms: systems that its objects are built for; empty where no object says.
        functions: names that it defines for others, without C's leading underscore.
        size: of the file, in bytes.
    """

    path: Path
    machines: frozenset[str]
    platforms: frozenset[str]
    functions: frozenset[str]
    size: int


def read_archive_file(path: Path) -> ArchiveFile:
    """Read the objects of an archive.

    Args:
        path: the file, usually libdeltallm_ops.a.

    Raises:
        DeltaLLMError: for a file that cannot be read, that is no archive of 64-bit Mach-O objects, or in which a header
            points outside its object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DeltaLLMError(f"{path} cannot be read ({error.strerror}): name a static archive for iOS.") from error
    machines: set[str] = set()
    platforms: set[str] = set()
    functions: set[str] = set()
    objects = 0
    for name, content in _members(data, path):
        if name.rstrip("\0 ") in _INDICES:
            continue
        objects += 1
        _read_object(_Object(path, name, content), machines, platforms, functions)
    if not objects:
        raise _no_archive(path, "it holds no object")
    return ArchiveFile(path, frozenset(machines), frozenset(platforms), frozenset(functions), len(data))


def _no_archive(path: Path, what: str) -> DeltaLLMError:
    return DeltaLLMError(f"{path} is no static archive for iOS: {what}.")


def _members(data: bytes, path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member."""
    if data[:4] in _UNIVERSAL:
        raise _no_archive(path, "it is universal, for several processors; take arm64 out of it with lipo -thin")
    if not data.startswith(_MAGIC):
        raise _no_archive(path, "it does not begin as one")
    at = len(_MAGIC)
    while at < len(data):
        header = data[at : at + _MEMBER_HEADER]
        if len(header) < _MEMBER_HEADER or header[58:] != b"`\n" or not header[48:58].strip().isdigit():
            raise _no_archive(path, "a header in it is damaged")
        begin, size = at + _MEMBER_HEADER, int(header[48:58])
        if begin + size > len(data):
            raise _no_archive(path, "it is cut short")
        name, content = header[:16].rstrip(b" "), data[begin : begin + size]
        if name.startswith(_BSD_NAME):
            length = name[len(_BSD_NAME) :]
            if not length.isdigit() or int(length) > size:
                raise _no_archive(path, "a name in it is damaged")
            name, content = content[: int(length)], content[int(length) :]
        yield name.decode("utf-8", "replace"), content
        at = begin + size + size % 2


class _Object:
    """Reads of an object whose every offset and count may be wrong."""

    def __init__(self, path: Path, name: str, data: bytes) -> None:
        self._path = path
        self._name = name.rstrip("\0 /")
        self.data = data

    def refuse(self, what: str) -> DeltaLLMError:
        return _no_archive(self._path, f"{self._name[:80]!r} in it {what}")

    def read(self, form: struct.Struct, offset: int) -> tuple[Any, ...]:
        if offset + form.size > len(self.data):
            raise self.refuse("has a header that points outside it")
        return form.unpack_from(self.data, offset)


def _read_object(item: _Object, machines: set[str], platforms: set[str], functions: set[str]) -> None:
    """Add what one object says."""
    if len(item.data) < _HEADER.size or item.read(_HEADER, 0)[0] != _MACHO_64:
        kind = "is an ELF object" if item.data.startswith(b"\x7fELF") else "is no 64-bit Mach-O object"
        raise item.refuse(kind)
    _, machine, _, _, commands, _, _, _ = item.read(_HEADER, 0)
    machines.add(MACHINES.get(machine, f"machine {machine:#x}"))
    at = _HEADER.size
    for _ in range(commands):
        command, size = item.read(_COMMAND, at)
        if size < _COMMAND.size or at + size > len(item.data):
            raise item.refuse("has a command that points outside it")
        if command == _LC_BUILD_VERSION:
            (platform,) = item.read(struct.Struct("<I"), at + _COMMAND.size)
            platforms.add(PLATFORMS.get(platform, f"platform {platform}"))
        elif command in _OLDER:
            platforms.add(PLATFORMS[_OLDER[command]])
        elif command == _LC_SYMTAB:
            functions |= _defined(item, *item.read(_SYMBOL_TABLE, at + _COMMAND.size))
        at += size


def _defined(item: _Object, symbols_at: int, count: int, strings_at: int, strings_size: int) -> set[str]:
    """Names that others may use."""
    end_of_strings = strings_at + strings_size
    if symbols_at + count * _NLIST.size > len(item.data) or end_of_strings > len(item.data):
        raise item.refuse("has symbols outside it")
    names = set()
    for at in range(symbols_at, symbols_at + count * _NLIST.size, _NLIST.size):
        name, kind, *_ = item.read(_NLIST, at)
        if kind & _EXTERNAL and kind & _TYPE == _IN_SECTION:
            begin = strings_at + name
            end = item.data.find(b"\0", begin, end_of_strings)
            if begin >= end_of_strings or end < 0:
                raise item.refuse("has a name outside it")
            names.add(item.data[begin:end].decode("utf-8", "replace").removeprefix("_"))
    return names
