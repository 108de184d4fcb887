"""How a plan that was just written becomes a model."""

from __future__ import annotations

import shlex
from pathlib import Path


def plan_hint(model: str, plan: Path) -> str:
    """The command, to be pasted.

    Args:
        model: as it was given: an .onnx file, a folder with one, a Hugging Face model directory, or a hub id.
        plan: the file that was written.
    """
    path = Path(model)
    if path.is_dir() and any(path.glob("*.onnx")):
        command, out = "rewrite", "OUT_FOLDER"
    else:
        command, out = ("rewrite" if path.is_file() else "convert"), "OUT.onnx"
    return f"use it by: deltallm-onnx {command} {shlex.quote(model)} {out} --plan {shlex.quote(str(plan))}"
