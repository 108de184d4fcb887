"""The short calibration of `convert`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.command_line import Outcome, run_here
from support.tiny_decoder import tiny_tokenizer
from support.tiny_models import save_tiny

import deltallm_onnx.export
from deltallm_onnx import DeltaConfig, convert
from deltallm_onnx.calibration.plan_file import load_plan
from deltallm_onnx.export import ExportReport

Run = Callable[..., Outcome]
#: The model has 130 positions; the default window would leave nothing to hold.
WINDOW = ("--window", "11")


@pytest.fixture
def deltallm(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_here(capsys, *arguments)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    """A Hugging Face folder, and beside it what its export writes."""
    folder = tmp_path_factory.mktemp("traced")
    save_tiny("llama", folder / "hf")
    tiny_tokenizer().save(str(folder / "hf" / "tokenizer.json"))
    (folder / "export").mkdir()
    return folder, deltallm_onnx.export.export_model(folder / "hf", folder / "export" / "x.onnx")


@pytest.fixture
def source(tmp_path: Path, traced: tuple[Path, ExportReport], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder whose export is a copy: tracing takes seconds, and is tested elsewhere."""
    folder, report = traced
    shutil.copytree(folder / "hf", tmp_path / "hf")
    (tmp_path / "out").mkdir()

    def copied(model: Path, out_path: Path, **_: Any) -> ExportReport:
        shutil.copytree(folder / "export", out_path.parent, dirs_exist_ok=True)
        (out_path.parent / "x.onnx").rename(out_path)
        if not (Path(model) / "tokenizer.json").exists():
            (out_path.parent / "tokenizer.json").unlink()
        return dataclasses.replace(report, path=out_path)

    monkeypatch.setattr("deltallm_onnx.export.export_model", copied)
    return tmp_path / "hf"


def test_it_finds_thresholds_and_says_what_they_cost(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out" / "x.onnx"
    outcome = deltallm("convert", source, out, *WINDOW, "--json")
    assert outcome.code == 0, outcome
    report = outcome.json
    assert report["calibration"]["budget"]["text"] == "kl=0.01"
    assert report["calibration"]["text"]["name"] == "the bundled text"
    assert report["calibration"]["reached"]["calibration"]["kl"] <= 0.01
    assert str(out.parent / "x.deltallm.json") in report["files"]
    config, plan = load_plan(out.parent / "x.deltallm.json")
    thetas = {
        tensor.name: onnx.numpy_helper.to_array(tensor).tolist()
        for tensor in onnx.load(out, load_external_data=False).graph.initializer
        if tensor.name.startswith("deltallm.threshold")
    }
    assert thetas == {f"deltallm.threshold.{layer.layer}": layer.threshold.tolist() for layer in plan.layers}
    assert report["config"]["window"] == config.window == 11
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_the_printed_report_has_before_and_after(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out" / "x.onnx"
    outcome = deltallm("convert", source, out, *WINDOW, "--budget", "delta_sparsity=0.4")
    assert outcome.code == 0, outcome
    assert outcome.out.endswith(f"wrote {out.with_name('x.deltallm.json')}: the thresholds and how they were found\n")
    assert "comes on top" not in outcome.out, "the weights are the model's own"
    assert "Calibrating: reading the text with the dense model\nCalibrating: at most " in outcome.err
    assert outcome.err.endswith("Calibrating: verifying\nRewriting\n")
    assert "calibrated for delta_sparsity=0.4 on the bundled text" in outcome.out
    assert "delta_sparsity      0 → 0." in outcome.out


def test_other_calibrations_of_the_folder_stay(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out"
    (out / "deltallm.json").write_text("what calibrate took an hour for")
    assert deltallm("convert", source, out / "x.onnx", *WINDOW).code == 0
    first = (out / "x.deltallm.json").read_bytes()
    assert deltallm("convert", source, out / "y.onnx", *WINDOW, "--budget", "delta_sparsity=0.4").code == 0
    assert (out / "deltallm.json").read_text() == "what calibrate took an hour for"
    assert (out / "x.deltallm.json").read_bytes() == first != (out / "y.deltallm.json").read_bytes()


def test_what_quantised_weights_cost_is_said_to_come_on_top(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out" / "x.onnx"
    outcome = deltallm("convert", source, out, *WINDOW, "--weights", "int4")
    assert outcome.code == 0, outcome
    note = (
        "the budget is kept against the same int4 weights, and what these cost comes on top: measure both with "
        f"'deltallm-onnx eval {out} --baseline {source} --text FILE'."
    )
    assert f"note: {note}\n" in outcome.out
    assert note in json.loads((tmp_path / "out" / "x.deltallm.json").read_text())["notes"]


def test_an_onnx_file_is_sent_to_rewrite(tmp_path: Path, deltallm: Run) -> None:
    (tmp_path / "dense.onnx").write_bytes(b"")
    for options in ((), ("--dense",)):
        outcome = deltallm("convert", tmp_path / "dense.onnx", tmp_path / "x.onnx", *options)
        assert outcome.code == 2
        assert f"use 'deltallm-onnx rewrite {tmp_path / 'dense.onnx'} {tmp_path / 'x.onnx'}'" in outcome.err


@pytest.mark.parametrize(
    "options",
    [
        ("--no-calibrate",),
        ("--profile", "balanced"),
        ("--threshold", "0.3"),
        ("--config", "c.json"),
        ("--plan", "p.json"),
    ],
    ids=lambda options: options[0],
)
def test_a_choice_of_the_users_is_not_calibrated_over(
    source: Path, tmp_path: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(DeltaConfig(window=11).to_json())
    if "--plan" in options:
        assert deltallm("convert", source, "out/x.onnx", *WINDOW).code == 0
        (tmp_path / "out" / "x.deltallm.json").rename("p.json")
    outcome = deltallm("convert", source, "out/x.onnx", *options)
    assert outcome.code == 0, outcome
    assert "calibrated" not in outcome.out, "nor is the plan called one of other weights"
    assert not (tmp_path / "out" / "x.deltallm.json").exists()


def test_what_cannot_be_calibrated_is_converted_all_the_same_and_told(
    source: Path, tmp_path: Path, deltallm: Run
) -> None:
    (source / "tokenizer.json").unlink()
    outcome = deltallm("convert", source, tmp_path / "out" / "x.onnx", *WINDOW)
    assert outcome.code == 0, outcome
    assert "not calibrated" in outcome.out
    assert "There is no" in outcome.out
    assert "tokenizer.json" in outcome.out
    assert not (tmp_path / "out" / "x.deltallm.json").exists()
    assert (tmp_path / "out" / "x.onnx").exists()


def test_what_would_take_long_is_left_out_unless_asked_for(
    source: Path, tmp_path: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deltallm_onnx.calibration.default.PATIENCE", 1e-6)
    outcome = deltallm("convert", source, tmp_path / "out" / "x.onnx", *WINDOW)
    assert outcome.code == 0, outcome
    assert "not calibrated" in outcome.out
    assert "--calibrate makes them all the same" in outcome.out
    assert deltallm("convert", source, tmp_path / "out" / "x.onnx", *WINDOW, "--calibrate").code == 0
    assert (tmp_path / "out" / "x.deltallm.json").exists()


def test_what_was_asked_for_and_cannot_be_calibrated_is_refused(source: Path, tmp_path: Path, deltallm: Run) -> None:
    for arguments in (("--budget", "kl=0.1"), ("--calibrate",)):
        # 128 tokens of window and 4 sinks leave nothing of 130 tokens.
        outcome = deltallm("convert", source, tmp_path / "out" / "x.onnx", *arguments)
        assert outcome.code == 2
        assert "no key would ever be held" in outcome.err
        assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--budget", "kl=0.1", "--no-calibrate"),
        ("--budget", "kl=0.1", "--threshold", "0.2"),
        ("--calibrate", "--profile", "exact"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    source: Path, tmp_path: Path, deltallm: Run, options: tuple[str, ...]
) -> None:
    outcome = deltallm("convert", source, tmp_path / "out" / "x.onnx", *options)
    assert outcome.code == 2
    assert "leave out one" in outcome.err


def test_the_python_interface_calibrates_only_when_asked(source: Path, tmp_path: Path) -> None:
    report = convert(source, tmp_path / "out" / "x.onnx", DeltaConfig())
    assert report.calibration is None
    assert json.loads(json.dumps(report.to_dict()))["calibration"] is None
    assert not (tmp_path / "out" / "x.deltallm.json").exists()
