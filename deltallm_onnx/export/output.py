"""Write a set of files into a folder, all or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.scratch_folder import scratch_folder


def check_model_path(out_path: Path) -> None:
    """Refuse a path that no .onnx file can be written to, before any work is done.

    Raises:
        DeltaLLMError: as `check_writable` does, and for another suffix, by which no command would find the model.
    """
    check_writable(out_path)
    if out_path.suffix.lower() != ".onnx":
        raise DeltaLLMError(f"{out_path} does not end in .onnx: give the name of the .onnx file to write.")


def check_writable(out_path: Path) -> None:
    """Refuse an output path that cannot be written, before any work is done.

    Raises:
        DeltaLLMError: if it is a directory, a device or anything else but a file, or its folder is missing or not
            writable.
    """
    if out_path.is_dir():
        raise DeltaLLMError(f"{out_path} is a directory: give the name of the file to write.")
    if out_path.exists() and not out_path.is_file():
        raise DeltaLLMError(f"{out_path} is no ordinary file, and would be replaced by one: give another output path.")
    if not out_path.parent.is_dir():
        raise DeltaLLMError(f"The folder {out_path.parent} does not exist: create it or give another output path.")
    try:
        with tempfile.TemporaryFile(dir=out_path.parent):
            pass
    except OSError as error:
        raise DeltaLLMError(
            f"Cannot write to {out_path.parent} ({error.strerror}): give another output path."
        ) from error


@contextmanager
def staged(out_path: Path) -> Iterator[Path]:
    """A fresh folder beside `out_path`; its files move into place when the block ends well, else they are gone.

    The ONNX file moves last, so that it is never there without what it needs. What a killed process left of the same
    target is removed first, see `scratch_folder`.

    Raises:
        DeltaLLMError: if the disk refuses a file.
    """
    try:
        with scratch_folder(out_path.parent, out_path.name) as scratch:
            folder = scratch / "files"  # beside the lock, which stays
            folder.mkdir()
            try:
                yield folder
            except DeltaLLMError as error:  # told is where the files would have been, not where they grew
                error.args = (str(error).replace(str(folder), str(out_path.parent)),)
                raise
            files = sorted(folder.iterdir(), key=lambda file: file.name == out_path.name)
            targets = [out_path.parent / file.name for file in files]
            blocked = [target for target in targets if target.is_dir()]
            if blocked:
                raise DeltaLLMError(f"{blocked[0]} is a directory where a file must be written: move it away.")
            for file, target in zip(files, targets, strict=True):
                file.replace(target)
    except OSError as error:
        raise DeltaLLMError(f"Cannot write {out_path} ({error.strerror or error}): nothing was left behind.") from error


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object as UTF-8 text, whole or not at all.

    Raises:
        DeltaLLMError: where the disk refuses it.
    """
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    with staged(path) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
