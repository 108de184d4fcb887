"""What a compiled library for Linux or Android says about itself: an ELF file read without running or loading it.

Format: System V ABI (gABI), chapters "Object Files" and "Dynamic Linking", and the Linux Standard Base for versions.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

#: e_machine → name of the processor, as `uname -m` gives it.
MACHINES = {0x3E: "x86_64", 0xB7: "aarch64", 0x03: "i686", 0x28: "armv7l", 0xF3: "riscv64"}

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_DYNAMIC = struct.Struct("<qQ")
_NEEDED_FILE = struct.Struct("<HHIII")
_NEEDED_VERSION = struct.Struct("<IHHII")

_SHARED_OBJECT = 3  # e_type
_LOAD = 1  # p_type
_DYNAMIC_SECTION, _DYNAMIC_SYMBOLS, _NEEDED_VERSIONS = 6, 11, 0x6FFFFFFE  # sh_type
_NEEDED_TAG = 1  # d_tag
_GLOBAL_BINDINGS = {1, 2, 10}  # STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class LibraryFile:
    """A shared library.

    Attributes:
        path: the file.
        machine: processor it is built for, e.g. "aarch64".
        needed: libraries that the loader looks for with it.
        exports: functions and objects that others may use.
        page_size: largest page size, in bytes, of a system that can load it.
        glibc: oldest version of the GNU C library that can load it; None where it names none (Android).
        size: of the file, in bytes.
    """

    path: Path
    machine: str
    needed: tuple[str, ...]
    exports: tuple[str, ...]
    page_size: int
    glibc: tuple[int, int] | None
    size: int


@dataclasses.dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    entries: int


class _Elf:
    """Reads of a file whose every offset and count may be wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise DeltaLLMError(f"{path} cannot be read ({error.strerror}): name an operator library.") from error
        self.size = len(self._data)

    def refuse(self, what: str) -> DeltaLLMError:
        return DeltaLLMError(f"{self._path} is no shared library for 64-bit Linux or Android: {what}.")

    def read(self, form: struct.Struct, offset: int, what: str) -> tuple[Any, ...]:
        if offset < 0 or offset + form.size > self.size:
            raise self.refuse(f"its {what} lies outside the file")
        return form.unpack_from(self._data, offset)

    def table(self, form: struct.Struct, offset: int, size: int, what: str) -> list[tuple[Any, ...]]:
        if offset < 0 or size < 0 or offset + size > self.size or size % form.size:
            raise self.refuse(f"its {what} lies outside the file")
        return [form.unpack_from(self._data, at) for at in range(offset, offset + size, form.size)]

    def text(self, strings: _Section, offset: int) -> str:
        begin, limit = strings.offset + offset, min(strings.offset + strings.size, self.size)
        end = self._data.find(b"\0", begin, limit) if begin < limit else -1
        if end < 0:
            raise self.refuse("a name lies outside the file")
        return self._data[begin:end].decode("utf-8", "replace")


def read_library_file(path: Path) -> LibraryFile:
    """Read the headers of an ELF shared library.

    Args:
        path: the file, usually libdeltallm_ops.so.

    Raises:
        DeltaLLMError: for a file that cannot be read, that is no 64-bit little-endian ELF shared library, or in which
            a header points outside the file.
    """
    elf = _Elf(path)
    if elf.size < _HEADER.size:
        raise elf.refuse(f"it has {elf.size} bytes")
    header = elf.read(_HEADER, 0, "header")
    ident, kind, machine = header[:3]
    segments_at, sections_at = header[5:7]
    segment_size, segments, section_size, sections = header[9:13]
    if ident[:6] != b"\x7fELF\x02\x01":
        raise elf.refuse("it does not begin as one")
    if kind != _SHARED_OBJECT:
        raise elf.refuse("it is not linked as one")
    if segment_size != _SEGMENT.size or section_size != _SECTION.size or not sections:
        raise elf.refuse("its tables have another form")
    loads = [
        alignment
        for kind, *_, alignment in elf.table(_SEGMENT, segments_at, segments * _SEGMENT.size, "segment table")
        if kind == _LOAD
    ]
    if not loads:
        raise elf.refuse("it has nothing to load")
    table = [
        _Section(kind, offset, size, link, info)
        for _, kind, _, _, offset, size, link, info, _, _ in elf.table(
            _SECTION, sections_at, sections * _SECTION.size, "section table"
        )
    ]
    return LibraryFile(
        path=path,
        machine=MACHINES.get(machine, f"machine {machine:#x}"),
        needed=_needed(elf, table),
        exports=_exports(elf, table),
        page_size=min(loads),
        glibc=_glibc(elf, table),
        size=elf.size,
    )


def _of_kind(elf: _Elf, sections: list[_Section], kind: int) -> tuple[_Section, _Section] | None:
    """The section of a kind, and the strings its names lie in."""
    for section in sections:
        if section.kind == kind:
            if section.link >= len(sections):
                raise elf.refuse("a section names strings that it does not have")
            return section, sections[section.link]
    return None


def _needed(elf: _Elf, sections: list[_Section]) -> tuple[str, ...]:
    found = _of_kind(elf, sections, _DYNAMIC_SECTION)
    if found is None:
        raise elf.refuse("it has no dynamic section")
    section, strings = found
    entries = elf.table(_DYNAMIC, section.offset, section.size, "dynamic section")
    return tuple(elf.text(strings, value) for tag, value in entries if tag == _NEEDED_TAG)


def _exports(elf: _Elf, sections: list[_Section]) -> tuple[str, ...]:
    found = _of_kind(elf, sections, _DYNAMIC_SYMBOLS)
    if found is None:
        raise elf.refuse("it has no dynamic symbols")
    section, strings = found
    symbols = elf.table(_SYMBOL, section.offset, section.size, "symbol table")
    names = {
        elf.text(strings, name)
        for name, info, _, index, _, _ in symbols
        if index != 0 and info >> 4 in _GLOBAL_BINDINGS
    }
    return tuple(sorted(names))


def _glibc(elf: _Elf, sections: list[_Section]) -> tuple[int, int] | None:
    found = _of_kind(elf, sections, _NEEDED_VERSIONS)
    if found is None:
        return None
    section, strings = found
    versions = []
    left = section.size // _NEEDED_VERSION.size  # no more than it has room for, however they are linked
    file_at = section.offset
    for _ in range(section.entries):
        _, count, _, first, next_file = elf.read(_NEEDED_FILE, file_at, "version table")
        version_at = file_at + first
        for _ in range(count):
            left -= 1
            if left < 0:
                raise elf.refuse("its version table is a ring")
            _, _, _, name, next_version = elf.read(_NEEDED_VERSION, version_at, "version table")
            match = _GLIBC.fullmatch(elf.text(strings, name))
            if match:
                versions.append((int(match.group(1)), int(match.group(2))))
            if not next_version:
                break
            version_at += next_version
        if not next_file:
            break
        file_at += next_file
    return max(versions, default=None)
