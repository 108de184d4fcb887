"""Folders that hold a model and what belongs to it: which file is the model, and what is carried along."""

from __future__ import annotations

import shutil
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.genai_folder import GenaiFolder


def find_model(folder: Path, genai: GenaiFolder | None) -> Path:
    """The model of a folder: the file that genai_config.json names, else its only .onnx file.

    Args:
        folder: with the model.
        genai: the folder's genai_config.json; None where there is none.

    Raises:
        DeltaLLMError: where there is none or more than one, and where the one that is named is not there.
    """
    if genai is not None:
        named = folder / genai.model_name
        if not named.is_file():
            raise DeltaLLMError(f"{genai.path} names the model {genai.model_name!r}, which is not there: put it there.")
        return named
    found = sorted(folder.glob("*.onnx"))
    if not found:
        raise DeltaLLMError(f"{folder} has no .onnx file: give a folder with a model, or the model itself.")
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DeltaLLMError(f"{folder} has {len(found)} .onnx files ({names}): name the one to rewrite.")
    return found[0]


def check_new_folder(out: Path) -> None:
    """Refuse an output folder that holds something, or that cannot be made.

    Raises:
        DeltaLLMError: saying which.
    """
    if out.exists() and not out.is_dir():
        raise DeltaLLMError(f"{out} is a file, and the model is a folder: give a folder to write.")
    if out.is_dir() and any(out.iterdir()):
        raise DeltaLLMError(f"The folder {out} is not empty: give a new one.")


def copy_side_files(source: Path, target: Path, *, leave_out: set[Path]) -> None:
    """Copy everything beside the model, subfolders included: tokenizer, configurations, other models.

    Args:
        source: the model's folder.
        target: an existing folder.
        leave_out: files that the rewrite writes anew.

    Raises:
        DeltaLLMError: for a symbolic link, which could bring in any file of this machine.
    """
    for path in sorted(source.rglob("*")):
        if path.is_symlink():
            raise DeltaLLMError(f"{path} is a symbolic link: replace it by the file itself; links are not followed.")
        if path in leave_out or not path.is_file():
            continue
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
