"""Mach-O objects and archives of them, written by hand: the smallest that say something."""

from __future__ import annotations

import struct
from collections.abc import Sequence

ARM64, X86_64 = 0x0100000C, 0x01000007
IOS, MACOS, SIMULATOR = 2, 1, 7
_LC_SYMTAB, _LC_BUILD_VERSION = 0x02, 0x32
_EXTERNAL_IN_SECTION, _EXTERNAL_UNDEFINED, _LOCAL = 0x0F, 0x01, 0x0E


def macho_object(
    defined: Sequence[str],
    *,
    undefined: Sequence[str] = (),
    local: Sequence[str] = (),
    machine: int = ARM64,
    platform: int | None = IOS,
) -> bytes:
    """An object with these symbols and no code.

    Args:
        defined: names for others, without the underscore that C puts before them.
        undefined: names it wants.
        local: names of its own.
        machine: cputype.
        platform: of LC_BUILD_VERSION; None leaves the command out.
    """
    names = [(name, kind) for kind, group in zip(_KINDS, (defined, undefined, local), strict=True) for name in group]
    strings, symbols = b"\0", b""
    for name, kind in names:
        symbols += struct.pack("<IBBHQ", len(strings), kind, 1 if kind != _EXTERNAL_UNDEFINED else 0, 0, 0)
        strings += b"_" + name.encode() + b"\0"
    build = b"" if platform is None else struct.pack("<IIIIII", _LC_BUILD_VERSION, 24, platform, 15 << 16, 17 << 16, 0)
    data_at = 32 + len(build) + 24
    table = struct.pack("<IIIIII", _LC_SYMTAB, 24, data_at, len(names), data_at + len(symbols), len(strings))
    commands = build + table
    header = struct.pack("<IiiIIIII", 0xFEEDFACF, machine, 0, 1, 1 + (platform is not None), len(commands), 0, 0)
    return header + commands + symbols + strings


_KINDS = (_EXTERNAL_IN_SECTION, _EXTERNAL_UNDEFINED, _LOCAL)


def archive(members: dict[str, bytes]) -> bytes:
    """An archive as Apple's libtool writes it: long names before the content, an index first."""
    content = b"!<arch>\n" + _member("__.SYMDEF SORTED", struct.pack("<II", 0, 0))
    return content + b"".join(_member(name, data) for name, data in members.items())


def _member(name: str, data: bytes) -> bytes:
    text = name.encode() + b"\0" * (-len(name) % 4)
    header = f"#1/{len(text)}".ljust(16) + "0".ljust(12) + "0".ljust(6) * 2 + "100644".ljust(8)
    body = text + data
    return (header + str(len(body)).ljust(10) + "`\n").encode() + body + b"\n" * (len(body) % 2)
