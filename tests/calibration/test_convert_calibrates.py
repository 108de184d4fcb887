"""The short calibration of `convert`."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.command_line import Outcome, run_here
from support.quantised_models import save_quantised
from support.tiny_decoder import tiny_tokenizer
from support.tiny_models import save_tiny

import deltallm_onnx.export
from deltallm_onnx import DeltaConfig, WeightFormat, convert
from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.plan_file import load_plan
from deltallm_onnx.cli.app import run
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

    def copied(
        model: Path, out_path: Path, *, weights: WeightFormat | None = None, before: Path | None = None, **_: Any
    ) -> ExportReport:
        shutil.copytree(folder / "export", out_path.parent, dirs_exist_ok=True)
        (out_path.parent / "x.onnx").rename(out_path)
        made = report
        if weights is not None:
            if before is not None:
                shutil.copytree(folder / "export", before.parent, dirs_exist_ok=True)
                (before.parent / "x.onnx").rename(before)
            stored = save_quantised(folder / "export" / "x.onnx", out_path, weights.name)
            made = dataclasses.replace(report, weights=stored)
        if not (Path(model) / "tokenizer.json").exists():
            (out_path.parent / "tokenizer.json").unlink()
        return dataclasses.replace(made, path=out_path)

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


def test_what_quantised_weights_cost_is_measured_beside(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out" / "x.onnx"
    outcome = deltallm("convert", source, out, *WINDOW, "--weights", "int4")
    assert outcome.code == 0, outcome
    lines = [line for line in outcome.out.splitlines() if line.startswith("int4 weights alone, against")]
    assert len(lines) == 1
    found = json.loads((tmp_path / "out" / "x.deltallm.json").read_text())
    cost, reached = found["weights"], found["reached"]["verification"]
    assert (cost["name"], cost["windows"]) == ("int4", reached["windows"])
    # The model that the budget is kept against is the one with int4 weights, which the weights' line ends at.
    assert cost["perplexity"] == pytest.approx(reached["baseline_perplexity"], rel=1e-5)
    assert cost["baseline_perplexity"] != pytest.approx(cost["perplexity"], rel=1e-4)
    assert cost["kl"] > 1e-5
    assert f"kl {cost['kl']:.4f} [" in lines[0]
    together, own = cost["with_attention"], cost["baseline_perplexity"]
    assert (together["perplexity"], together["baseline_perplexity"]) == (reached["perplexity"], own)
    assert together["perplexity_increase"] == pytest.approx(reached["perplexity"] / own - 1, abs=1e-9)
    low, high = together["perplexity_increase_interval"]
    assert low <= together["perplexity_increase"] <= high
    assert f"together: perplexity {own:.3f} → {reached['perplexity']:.3f}, " in outcome.out
    assert found["notes"] == [note for note in found["notes"] if "weights" not in note]
    assert "was not measured" not in outcome.out
    bill = re.search(r"at most (\d+) readings", outcome.err)
    assert bill is not None
    plain = re.search(r"at most (\d+) readings", deltallm("convert", source, out, *WINDOW).err)
    assert plain is not None
    assert int(bill[1]) - int(plain[1]) == 2 * cost["windows"], "they are in the bill"
    assert json.loads((tmp_path / "out" / "x.deltallm.json").read_text())["weights"] is None
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_what_was_not_measured_of_the_weights_is_said(
    source: Path, tmp_path: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no room for both models, and where nothing is calibrated."""
    out = tmp_path / "out" / "x.onnx"
    told = "What the quantised weights cost in predictions was not measured"
    outcome = deltallm("convert", source, out, *WINDOW, "--weights", "int4", "--no-calibrate")
    assert outcome.code == 0, outcome
    assert outcome.out.count(told) == 1
    exports = deltallm_onnx.export.export_model

    def without_room(model: Path, out_path: Path, *, before: Path, **others: Any) -> ExportReport:
        report = exports(model, out_path, before=before, **others)
        before.unlink()
        return report

    monkeypatch.setattr("deltallm_onnx.export.export_model", without_room)
    outcome = deltallm("convert", source, out, *WINDOW, "--weights", "int4")
    assert outcome.code == 0, outcome
    note = (
        "the budget is kept against the same int4 weights, and what these cost comes on top and was not measured: "
        f"measure both with 'deltallm-onnx eval {out} --baseline {source} --text FILE'."
    )
    assert f"note: {note}\n" in outcome.out
    assert told not in outcome.out, "once is enough"
    found = json.loads((tmp_path / "out" / "x.deltallm.json").read_text())
    assert note in found["notes"]
    assert found["weights"] is None


def test_the_bill_stays_on_a_terminal(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps are written over each other by a spinner, and gone at the end; the bill ends in a new line."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    capsys.readouterr()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert run(["convert", str(source), str(tmp_path / "out" / "x.onnx"), *WINDOW]) == 0
    shown = terminal.getvalue()
    assert re.search(r"Calibrating: at most \d+ readings of a window of text from here, up to \d+ seconds?\n", shown)
    assert "verifying\n" not in shown
    assert "verifying" in shown


def test_ctrl_c_keeps_the_measurements_and_the_next_run_takes_them(
    source: Path, tmp_path: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, journal = tmp_path / "out" / "x.onnx", tmp_path / "out" / "x.deltallm.json.journal"
    recorded, left = ModelMeter._recorded, [2]

    def interrupted(self: ModelMeter, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return recorded(self, *arguments)

    with monkeypatch.context() as changed:
        changed.setattr(ModelMeter, "_recorded", interrupted)
        outcome = deltallm("convert", source, out, *WINDOW)
    assert (outcome.code, outcome.out) == (130, "")
    again = (
        f"finished measurements are in {journal}, and the same command traces the model anew and goes on from there."
    )
    assert outcome.err.splitlines()[-1] == f"error: Interrupted: {again}"
    assert list(out.parent.iterdir()) == [journal]
    outcome = deltallm("convert", source, out, *WINDOW)
    assert outcome.code == 0, outcome
    assert f"Calibrating: {journal} has " in outcome.err
    assert not journal.exists()
    assert "journal" not in deltallm("convert", source, out, *WINDOW).err
    journal.write_text("damaged\n")
    outcome = deltallm("convert", source, out, *WINDOW)
    assert outcome.code == 0, outcome
    assert f"Calibrating: {journal} is damaged and begun anew\n" in outcome.err
    assert not journal.exists()


def test_the_rule_is_the_one_that_was_named(source: Path, tmp_path: Path, deltallm: Run) -> None:
    out = tmp_path / "out" / "x.onnx"
    for name in ("absolute", "query"):
        outcome = deltallm("convert", source, out, *WINDOW, "--budget", "delta_sparsity=0.4", "--rule", name, "--json")
        assert outcome.code == 0, outcome
        assert set(outcome.json["calibration"]["rules"].values()) == {name}
        assert {site["rule"] for site in deltallm("inspect", out, "--json").json["sites"]} == {name}


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
