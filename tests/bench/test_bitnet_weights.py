"""The BitNet checkpoint of the benchmarks, and the script from the command line to the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bench import bitnet_weights
from bench.bitnet import write_checkpoint
from deltallm_onnx.export import loading
from deltallm_onnx.export.source import find_model
from deltallm_onnx.export.ternary import TernaryLinear
from deltallm_onnx.export.ternary_codes import TernaryFormat


def test_a_checkpoint_is_complete_and_ternary(tmp_path: Path) -> None:
    config = bitnet_weights.TOY
    write_checkpoint(config, tmp_path)
    model, notes = loading.load(find_model(tmp_path, print), TernaryFormat())
    assert notes == []
    assert sum(isinstance(x, TernaryLinear) for x in model.modules()) == 2 * 7
    hidden, inner, kept = 156, 308, 52
    matrices = 2 * hidden * hidden + 2 * kept * hidden + 3 * inner * hidden
    norms = 3 * hidden + inner
    assert loading.count_parameters(model) == 2 * (matrices + norms) + hidden + 517 * hidden
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    packed = stored["model.layers.1.mlp.down_proj.weight"]
    fields = torch.stack([(packed >> (2 * part)) & 3 for part in range(4)])
    shares = torch.bincount(fields.flatten(), minlength=4) / fields.numel()
    assert shares[3] == 0
    assert ((shares[:3] - 1 / 3).abs() < 0.02).all()
    written = (tmp_path / "model.safetensors").stat().st_mtime_ns
    write_checkpoint(config, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == written


def test_forms_are_converted_measured_and_recorded(tmp_path: Path) -> None:
    sizes = ["--config", "toy", "--prompt", "9", "--prompts", "2", "--steps", "3"]
    folders = ["--folder", str(tmp_path / "models"), "--record", str(tmp_path)]
    bitnet_weights.main([*sizes, "--threads", "1", *folders, "--only", "2 bits", "float32"])
    record = json.loads((tmp_path / "bitnet-weights-toy.json").read_text())
    expected = [("2 bits", 1), ("float32", 1), ("2 bits", 2)]
    assert [(row["name"], row["layers"]) for row in record["conversions"]] == expected
    assert [(row["name"], row["layers"]) for row in record["memory"]] == expected
    assert [len(result["forms"]) for result in record["results"]] == [2, 1]
    for row in (*record["conversions"], *record["memory"]):
        assert row["peak_resident_bytes"] > 10**7
    two, floats = record["results"][0]["forms"]
    assert two["step_ratio"]["median"] == two["prompt_ratio"]["median"] == 1
    assert floats["compared_with"] == "2 bits"
    codes, wide = (
        next(row["bytes_written"] for row in record["conversions"] if row["name"] == x) for x in ("2 bits", "float32")
    )
    assert codes < wide


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layers", "1", "3"], "--layers is 3: the model has 2."),
        (["--steps", "0"], "counted from 1"),
        (["--prompt", "1020"], "A prompt of 1020 tokens is too long: the model has 1024."),
    ],
)
def test_wrong_settings_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        bitnet_weights.main(["--config", "toy", *arguments])
    assert left.value.code == 2
    assert words in capsys.readouterr().err
