"""Folders that hold a model and what belongs to it: which file is the model, and what is carried along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.genai_folder import GENAI_CONFIG, GenaiFolder
from deltallm_onnx.runtime.model_file import ORT_SUFFIX

#: What tells models apart that share a folder, and what one would take from the other.
_IDENTITY = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


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
        raise DeltaLLMError(f"{folder} has {len(found)} .onnx files ({names}): name one of them.")
    return found[0]


def calibration_path(model: Path) -> Path:
    """Where the calibration of a conversion lies: a name of its own, as several models may share a folder.

    Args:
        model: the .onnx file.
    """
    return model.with_name(f"{model.stem}.deltallm.json")


def check_new_folder(out: Path) -> None:
    """Refuse an output folder that holds something, or that cannot be made.

    Raises:
        DeltaLLMError: saying which.
    """
    if out.suffix.lower() == ".onnx" and not out.is_dir():
        raise DeltaLLMError(
            f"{out} ends in .onnx, and a folder becomes a folder: give a folder to write, or rewrite the .onnx file by "
            "itself."
        )
    if out.exists() and not out.is_dir():
        raise DeltaLLMError(f"{out} is a file, and the model is a folder: give a folder to write.")
    if out.is_dir() and any(out.iterdir()):
        raise DeltaLLMError(f"The folder {out} is not empty: give a new one.")


def refuse_another_model(source: Path, out_path: Path) -> None:
    """Refuse to replace the configuration or the tokenizer of another model.

    Several conversions of one model may share a folder, and a conversion may replace an earlier one of the same name.

    Args:
        source: the folder whose configuration and tokenizer come beside the model.
        out_path: the model file that will be written.

    Raises:
        DeltaLLMError: naming the file that would be lost.
    """
    models = (path for suffix in (".onnx", ORT_SUFFIX) for path in out_path.parent.glob(f"*{suffix}"))
    others = sorted(path.name for path in models if path.name != out_path.name)
    if not others and out_path.is_file():
        return
    for name in _IDENTITY:
        there, new = out_path.parent / name, source / name
        if there.is_file() and new.is_file() and there.read_bytes() != new.read_bytes():
            owner = others[0] if others else "another model"
            raise DeltaLLMError(
                f"{there} belongs to {owner} and would be replaced: give each model a folder of its own."
            )


def renamed_in_config(out_path: Path) -> tuple[str, ...]:
    """A note where a conversion takes the folder's genai_config.json over from another one."""
    path = out_path.parent / GENAI_CONFIG
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["model"]["decoder"]["filename"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    if before == out_path.name or not isinstance(before, str) or not (path.parent / Path(before).name).is_file():
        return ()
    return (f"{path} named {before} and names {out_path.name} now: onnxruntime-genai runs one model of a folder.",)


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
