"""Find the compiled operator library and register it with ONNX Runtime."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import weakref
from pathlib import Path

import onnxruntime as ort

import deltallm_onnx
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.library_file import read_library_file

#: Path of the library, where it does not lie in the installed package.
LIBRARY_VARIABLE = "DELTALLM_OPS_LIBRARY"

#: The oldest ONNX Runtime whose custom-op API the library speaks.
MINIMUM_ONNXRUNTIME = (1, 17)

#: What it may be called on this system, the usual name first.
LIBRARY_NAMES = {
    "win32": ("deltallm_ops.dll", "libdeltallm_ops.dll"),
    # CMake gives a loadable module the suffix .so on macOS.
    "darwin": ("libdeltallm_ops.dylib", "libdeltallm_ops.so"),
}.get(sys.platform, ("libdeltallm_ops.so",))

# Where `cmake -S ops -B build/ops` of a source checkout leaves it.
_SOURCE_BUILD = Path(__file__).resolve().parents[2] / "build" / "ops"

# ONNX Runtime accepts the second registration and fails later, at session creation, naming a schema.
_registered: weakref.WeakSet[ort.SessionOptions] = weakref.WeakSet()


def ops_library_path() -> Path:
    """Path of the compiled `ai.deltallm` operator library.

    Looked for in this order: the environment variable DELTALLM_OPS_LIBRARY; every directory of the installed package
    (an editable installation has two); `build/ops` of a source checkout.

    Raises:
        DeltaLLMError: where there is none, saying where it was looked for and how to build it.
    """
    chosen = os.environ.get(LIBRARY_VARIABLE)
    if chosen:
        path = Path(chosen)
        if not path.is_file():
            raise DeltaLLMError(f"{LIBRARY_VARIABLE} names {chosen}, which is not a file: correct or unset it.")
        return path.resolve()
    folders = [Path(folder) for folder in deltallm_onnx.__path__]
    folders.append(_SOURCE_BUILD)
    for folder in folders:
        for name in LIBRARY_NAMES:
            if (folder / name).is_file():
                return (folder / name).resolve()
    raise DeltaLLMError(
        f"The operator library {LIBRARY_NAMES[0]} is not in {', '.join(map(str, folders))}: build it with "
        f"'make setup' (or 'pip install .'), or name it in {LIBRARY_VARIABLE}."
    )


def register(session_options: ort.SessionOptions, library: Path | None = None) -> None:
    """Make the `ai.deltallm` operators known to sessions created with these options.

    Args:
        session_options: changed in place.
        library: the operator library; by default that of `ops_library_path`.

    Raises:
        DeltaLLMError: where ONNX Runtime is older than 1.17, where the library is missing or cannot be loaded, and
            where these options have it already.
    """
    _check_onnxruntime_version(ort.__version__)
    path = ops_library_path() if library is None else library.resolve()
    if not path.is_file():
        raise DeltaLLMError(f"There is no operator library {path}: name the file, or build it with 'make setup'.")
    if session_options in _registered:
        raise DeltaLLMError(
            f"{path.name} is already registered with these session options: register once per SessionOptions."
        )
    try:
        session_options.register_custom_ops_library(str(path))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise DeltaLLMError(_other_machine(path) or _not_loaded(path, error)) from error
    _registered.add(session_options)


def _not_loaded(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"ONNX Runtime {ort.__version__} cannot load {path} ({reason}): rebuild it with 'make setup'."


def _other_machine(path: Path) -> str | None:
    """Of such a library the system's loader says that it is not there."""
    with contextlib.suppress(DeltaLLMError):  # no ELF file: there is nothing to add to what ONNX Runtime says
        machine = read_library_file(path).machine
        if machine != platform.machine():
            return (
                f"The operator library {path} is built for {machine}, and this machine is {platform.machine()}: name "
                f"one that is built for it in {LIBRARY_VARIABLE}, or unset that."
            )
    return None


def _check_onnxruntime_version(version: str) -> None:
    parts = version.split(".")[:2]
    if len(parts) == 2 and all(part.isdigit() for part in parts) and tuple(map(int, parts)) < MINIMUM_ONNXRUNTIME:
        needed = ".".join(map(str, MINIMUM_ONNXRUNTIME))
        raise DeltaLLMError(
            f"onnxruntime {version} is too old for the operator library: install {needed} or newer "
            f"(pip install 'onnxruntime>={needed}')."
        )
