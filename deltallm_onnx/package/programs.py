"""What a Linux device runs the model with: the C++ runner, and ONNX Runtime's shared library."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.library_file import LibraryFile, read_library_file
from deltallm_onnx.package.library import check_machine
from deltallm_onnx.package.targets import Target, built

#: Names in a package.
RUNNER, ONNXRUNTIME = "deltallm_run", "libonnxruntime.so.1"
#: The function by which programs reach ONNX Runtime.
_API = "OrtGetApiBase"
#: What the runner looks for ONNX Runtime by; every build of it has the text.
_RUNNER_MARK = _API.encode()
#: Where `make runner` leaves it, for the machine at hand.
_OWN_RUNNER = f"build/runner/{RUNNER}"
_LICENCES = ("LICENSE", "ThirdPartyNotices.txt")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """ONNX Runtime's shared library.

    Attributes:
        path: the file.
        version: from its name, such as "1.32.0"; None where the name has none.
        glibc: oldest version of the GNU C library that can load it; None where it names none.
        licences: its licence and the notices of what it contains; empty where they do not lie with it.
    """

    path: Path
    version: str | None
    glibc: tuple[int, int] | None
    licences: tuple[Path, ...]


def find_runner(target: Target, given: Path | None) -> LibraryFile | None:
    """The C++ runner of examples/cpp for a target; None where none was named and none is built.

    Raises:
        DeltaLLMError: for a file that is not the runner or is for another system.
    """
    cure = f"build it with '{' && '.join(target.runner_commands)}'"
    if given is not None:
        _check_for_linux(target, given, "--runner")
        return _check_runner(given, target, cure)
    own = (_OWN_RUNNER,) if target.is_this_machine else ()
    found = built((*own, *target.runner_builds))
    return None if found is None else _check_runner(found, target, cure)


def find_onnxruntime(target: Target, given: Path | None) -> Runtime | None:
    """ONNX Runtime's library for a target, where the user named one.

    Raises:
        DeltaLLMError: for a file that is not ONNX Runtime or is for another system.
    """
    if given is None:
        return None
    _check_for_linux(target, given, "--onnxruntime")
    library = read_library_file(given)
    cure = "take ONNX Runtime's release or wheel for that system"
    check_machine(library, target, cure, "--onnxruntime")
    if _API not in library.exports:
        raise DeltaLLMError(f"{given} has no {_API}, so it is not ONNX Runtime: {cure}.")
    version = re.search(r"\.so\.(\d+\.\d+\.\d+)$", given.resolve().name)
    return Runtime(given, version.group(1) if version else None, library.glibc, _licences(given.resolve()))


def _licences(library: Path) -> tuple[Path, ...]:
    """In a wheel they lie in onnxruntime/ above capi/, in a release above lib/."""
    found = [library.parent.parent / name for name in _LICENCES]
    return tuple(path for path in found if path.is_file())


def _check_for_linux(target: Target, given: Path, option: str) -> None:
    if target.system != "linux":
        raise DeltaLLMError(
            f"{option} is for Linux, and apps for {target.title} take ONNX Runtime as a package and are programs "
            "themselves: leave it out."
        )
    if not given.is_file():
        raise DeltaLLMError(f"{option} names {given}, which is no file: correct it or leave it out.")


def _check_runner(path: Path, target: Target, cure: str) -> LibraryFile:
    try:
        program = read_library_file(path)
    except DeltaLLMError as error:
        raise DeltaLLMError(f"{path} is not the C++ runner ({error}): {cure}.") from error
    check_machine(program, target, cure, "--runner")
    if _RUNNER_MARK not in path.read_bytes():
        raise DeltaLLMError(f"{path} is not the C++ runner, for it never asks for {_API}: {cure}.")
    return program
