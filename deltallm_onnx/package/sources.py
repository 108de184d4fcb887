"""The operators' sources, for systems whose compilers are not on the machine that packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.package.targets import Target, checkout

#: Folder in a package; the commands of the documentation work beside it.
SOURCES = "ops"
#: What the library is built from. Tests and benchmarks stay behind.
_FOLDERS = ("cache", "cmake", "core", "kernels", "ort")
_FILES = ("CMakeLists.txt", "CMakePresets.json")
_SUFFIXES = (".cc", ".h", ".cmake", ".map")


def sources_root(target: Target) -> Path:
    """The checkout that has them.

    Raises:
        DeltaLLMError: where there is none.
    """
    root = checkout()
    if root is None:
        raise DeltaLLMError(
            f"There is no operator library for {target.name}, and an installed wheel has no sources of it: package "
            "from a checkout of deltallm-onnx's sources, or name a library with --library FILE."
        )
    return root


def copy_sources(root: Path, folder: Path) -> None:
    """Copy the sources of a checkout into a package."""
    found = [root / SOURCES / name for name in _FILES]
    for name in _FOLDERS:
        found += (path for path in (root / SOURCES / name).rglob("*") if path.suffix in _SUFFIXES)
    for path in found:
        copy = folder / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
