"""The command that a calibration ends with can be pasted."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from deltallm_onnx.cli.plan_hint import plan_hint

KINDS = {
    "dense file.onnx": ("rewrite", "OUT.onnx"),
    "genai": ("rewrite", "OUT_FOLDER"),
    "hf": ("convert", "OUT.onnx"),
    "owner/name": ("convert", "OUT.onnx"),
}


@pytest.mark.parametrize("model", KINDS)
def test_the_command_fits_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("dense file.onnx", "genai/model.onnx", "hf/config.json"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(b"")
    command, out = KINDS[model]
    said, shown = plan_hint(model, Path("my plan.json")).split(": ", 1)
    assert said == "use it by"
    assert shlex.split(shown) == ["deltallm-onnx", command, model, out, "--plan", "my plan.json"]
