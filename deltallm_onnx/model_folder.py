"""Folders that hold a model and what belongs to it: which file is the model, and what is carried along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

GENAI_CONFIG = "genai_config.json"


def find_model(folder: Path) -> Path:
    """The model of a folder: the file that genai_config.json names, else its only .onnx file.

    Raises:
        DeltaLLMError: where there is none or more than one, and where genai_config.json names another folder's file.
    """
    named = _genai_file_name(folder)
    if named is not None:
        # A name with a folder in it would be written outside the output.
        if Path(named).name != named or named in ("", ".", ".."):
            raise DeltaLLMError(f"{folder / GENAI_CONFIG} names the model {named!r}: a file in the folder is needed.")
        return folder / named
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DeltaLLMError(f"{folder} has {len(found)} .onnx files ({names}): name the one to rewrite.")
    return found[0]


def _genai_file_name(folder: Path) -> str | None:
    path = folder / GENAI_CONFIG
    if not path.is_file():
        return None
    data: Any
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeltaLLMError(f"{path} cannot be read as JSON ({error}): correct it or remove it.") from error
    for key in ("model", "decoder", "filename"):
        data = data.get(key) if isinstance(data, dict) else None
    if data is None:
        return None
    if not isinstance(data, str):
        raise DeltaLLMError(f"{path} has a model.decoder.filename that is not a text: correct it or remove it.")
    return data


def set_genai_cache_row(folder: Path, size: int) -> None:
    """Tell onnxruntime-genai the last dimension of the caches, which it takes from the head size; nothing without it.

    Args:
        folder: where genai_config.json may lie.
        size: bytes_per_token of a packed cache.
    """
    path = folder / GENAI_CONFIG
    if _genai_file_name(folder) is None:
        return
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["decoder"]["head_size"] = size
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


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
