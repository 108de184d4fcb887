"""The licences that go with the binaries of a package."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable
from pathlib import Path

from deltallm_onnx.package.targets import checkout

#: Folder in a package.
LICENCES = "licences"
_OWN = "deltallm-onnx"


def copy_licences(folder: Path, onnxruntime: Iterable[Path]) -> None:
    """Put the licence of the operator library and the runner, and those of ONNX Runtime, into a package.

    Args:
        folder: the package.
        onnxruntime: files that go with ONNX Runtime's library.
    """
    text = _own_licence()
    if text is not None:
        _write(folder, f"{_OWN}-LICENSE", text)
    for source in onnxruntime:
        (folder / LICENCES).mkdir(exist_ok=True)
        shutil.copyfile(source, folder / LICENCES / f"onnxruntime-{source.name}")


def _write(folder: Path, name: str, text: str) -> None:
    (folder / LICENCES).mkdir(exist_ok=True)
    (folder / LICENCES / name).write_text(text, encoding="utf-8")


def _own_licence() -> str | None:
    root = checkout()
    if root is not None and (root / "LICENSE").is_file():
        return (root / "LICENSE").read_text(encoding="utf-8")
    try:
        return importlib.metadata.distribution(_OWN).read_text("licenses/LICENSE")
    except importlib.metadata.PackageNotFoundError:
        return None
