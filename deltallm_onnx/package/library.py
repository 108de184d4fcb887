"""The operator library of a package: where it comes from, and whether it is the right one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.library_file import LibraryFile, read_library_file
from deltallm_onnx.package.archive_file import read_archive_file
from deltallm_onnx.package.targets import Target, built, checkout
from deltallm_onnx.runtime.library import ops_library_path

#: The name that ONNX Runtime looks for, and the one that is this library's alone.
_ENTRY, _OWN_ENTRY = "RegisterCustomOps", "DeltaLLMRegisterCustomOps"
#: What every system of the kind brings, beside Linux's loader. ONNX Runtime itself needs libstdc++ there.
_BROUGHT = {
    "linux": (
        "libc.so.6",
        "libm.so.6",
        "libdl.so.2",
        "libpthread.so.0",
        "librt.so.1",
        "libgcc_s.so.1",
        "libstdc++.so.6",
    ),
    "android": ("libc.so", "libm.so", "libdl.so", "liblog.so"),
}


@dataclasses.dataclass(frozen=True)
class Library:
    """A library that was checked.

    Attributes:
        path: where it is now.
        facts: what it says of itself, for people.
        glibc: oldest version of the GNU C library that can load it; None where it names none.
    """

    path: Path
    facts: str
    glibc: tuple[int, int] | None = None


def find_library(target: Target, given: Path | None) -> Library | None:
    """The operator library for a target.

    Args:
        target: the system.
        given: the file that the user named; None looks where builds leave it.

    Returns:
        None where none was named and none is built for Android or iOS, whose compilers are not everywhere.

    Raises:
        DeltaLLMError: for a library that is not the one the target needs, and for Linux where there is none, with the
            commands that build it.
    """
    if given is not None:
        if not given.is_file():
            what = "is a folder" if given.is_dir() else "is not there"
            raise DeltaLLMError(f"--library names {given}, which {what}: name the file, {target.library}.")
        return check_library(given, target)
    if target.is_this_machine:
        return check_library(ops_library_path(), target)
    found = built(target.builds)
    if found is not None:
        return check_library(found, target)
    if target.system != "linux":
        return None
    where = f" ({' and '.join(target.builds)} are not there)" if checkout() and target.builds else ""
    raise DeltaLLMError(
        f"There is no operator library for {target.name}{where}: {build_hint(target)}, or name one with --library FILE."
    )


def build_hint(target: Target) -> str:
    """How to build the library, as part of a sentence."""
    commands = " && ".join(target.commands)
    place = "" if checkout() else " in a checkout of deltallm-onnx's sources"
    return f"build it with '{commands}'{place}{target.where}"


def check_library(path: Path, target: Target) -> Library:
    """Check that a file is the operator library for a target.

    Raises:
        DeltaLLMError: saying what the file is instead.
    """
    return _check_archive(path, target) if target.system == "ios" else _check_shared(path, target)


def _wrong(path: Path, what: str, target: Target) -> DeltaLLMError:
    return DeltaLLMError(f"{path} {what}: {build_hint(target)}, or name another one with --library.")


def _check_archive(path: Path, target: Target) -> Library:
    archive = read_archive_file(path)
    if archive.machines != {target.machine}:
        raise _wrong(path, f"is built for {_listed(archive.machines)}, and {target.name} needs arm64", target)
    if not archive.platforms <= {"ios"}:
        raise _wrong(path, f"is built for {_listed(archive.platforms)}, and not for iOS devices", target)
    if _OWN_ENTRY not in archive.functions:
        raise _wrong(path, f"defines no {_OWN_ENTRY}, so it is not the operator library", target)
    if _ENTRY in archive.functions:
        raise _wrong(path, f"defines {_ENTRY} too, which collides with other operator libraries in an app", target)
    return Library(path, f"arm64, {byte_text(archive.size)}, defines {_OWN_ENTRY}")


def _check_shared(path: Path, target: Target) -> Library:
    library = read_library_file(path)
    check_machine(library, target, build_hint(target), "--library")
    missing = [name for name in (_ENTRY, _OWN_ENTRY) if name not in library.exports]
    if missing:
        raise _wrong(path, f"exports no {missing[0]}, so it is not the operator library", target)
    if library.page_size < target.page_size:
        raise _wrong(
            path,
            f"is aligned for pages of {library.page_size} bytes, and {target.name} has systems with {target.page_size}",
            target,
        )
    glibc = "" if library.glibc is None else f", glibc {version_text(library.glibc)} or newer"
    facts = (
        f"{library.machine}, {byte_text(library.size)}{glibc}, needs {', '.join(library.needed) or 'no library'}; "
        f"pages of up to {library.page_size // 1024} KiB"
    )
    return Library(path, facts, library.glibc)


def check_machine(library: LibraryFile, target: Target, cure: str, option: str) -> None:
    """Refuse a file for another processor or system.

    Args:
        library: the file.
        target: what it must run on.
        cure: how to build the right one.
        option: that names another one.

    Raises:
        DeltaLLMError: naming both.
    """
    rest = f"{cure}, or name another one with {option}."
    if library.machine != target.machine:
        raise DeltaLLMError(
            f"{library.path} is built for {library.machine}, and {target.name} needs {target.machine}: {rest}"
        )
    brought = _BROUGHT[target.system]
    foreign = [name for name in library.needed if name not in brought and not name.startswith("ld-linux")]
    if target.system == "android" and (library.glibc or "libc.so.6" in library.needed):
        raise DeltaLLMError(f"{library.path} is built for Linux, and does not load on Android: {rest}")
    if foreign:
        raise DeltaLLMError(f"{library.path} needs {foreign[0]}, which not every system of {target.title} has: {rest}")


def version_text(version: tuple[int, int]) -> str:
    """A version for people."""
    return ".".join(map(str, version))


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))
