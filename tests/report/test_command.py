"""`deltallm-onnx report` as a user meets it: files, notes, and refusals that leave nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command_line import files_below, run_here
from support.letter_tokenizer import save_letter_tokenizer
from support.report_models import ReportModels, letters
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS
from support.tiny_models import save_tiny

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan

Arguments = list[object]
QUICK = ("--window-tokens", "40", "--windows", "1", "--maps", "0")


def test_files_are_written_and_named(models: ReportModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, data, pictures = tmp_path / "report.html", tmp_path / "report.json", tmp_path / "png"
    files = ("-o", out, "--json", data, "--png", pictures)
    outcome = run_here(capsys, "report", models.int8, *files, "--text", models.text, *QUICK)
    assert outcome.code == 0, outcome
    assert outcome.out.split() == [str(out), str(data)]
    drawn = sorted(path.name for path in pictures.iterdir())
    assert f"{len(drawn)} pictures in {pictures}" in outcome.err
    assert "delta-sparsity.png" in drawn
    assert "left out: Recorded times. It needs timings: give --record FILE" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["png", "report.html", "report.json"]
    assert json.loads(data.read_text())["text"]["windows"] == 1


def _calibration(plan: AttentionPlan, config: DeltaConfig) -> dict[str, Any]:
    """What `deltallm-onnx calibrate` writes, as far as a report reads it."""
    points = [{"kl": 0.01 * n, "delta_sparsity": 0.1 * n, "kv_bytes_per_token": 100.0 - n} for n in (1, 2)]
    return {
        "format": "deltallm-calibration",
        "version": 1,
        "config": config.to_dict(),
        **plan.to_dict(),
        "budget": {"metric": "kl", "limit": 0.02, "text": "kl=0.02"},
        "reached": {"verification": {"kl": 0.019, "windows": 3}, "calibration": {"kl": 0.02}},
        "search": points,
        "weights": {"name": "int4", "kl": 0.0421, "perplexity_increase": 0.0317, "windows": 8},
        "rules": {"0": "query", "1": 3},
        "notes": ["the verification part shows more", 7],
        "seed": 5,
    }


def _plan(theta: float) -> AttentionPlan:
    """Rows of layer 0 are weighted."""
    threshold = np.full(KV_HEADS, theta, np.float32)
    weights = [np.full((KV_HEADS, HEAD_SIZE), 0.5, np.float32), *[None] * (LAYERS - 1)]
    return AttentionPlan(
        tuple(LayerPlan(layer, threshold, weight, "row", "relative") for layer, weight in enumerate(weights))
    )


def test_a_calibration_beside_the_model_is_found(
    models: ReportModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the model has its thresholds; another one must be named, and is told from the model's own."""
    model, out, data = tmp_path / "planned.onnx", tmp_path / "report.html", tmp_path / "report.json"
    config, beside = DeltaConfig(window=5, sinks=4), tmp_path / "deltallm.json"
    rewrite(models.dense, model, config, plan=_plan(0.5))
    files = (model, "-o", out, "--json", data)

    beside.write_text(json.dumps(_calibration(_plan(0.5), config)))
    assert run_here(capsys, "report", *files).code == 0
    found = json.loads(data.read_text())
    assert found["calibration"]["own"]
    rules = [layer["rule"] for layer in found["model"]["layers"]]
    assert rules == ["query-relative", *["relative"] * (LAYERS - 1)]
    assert out.read_text(encoding="utf-8").count(">query-relative</data>") == 1
    assert found["calibration"]["reached"] == {"calibration": {"kl": 0.02}, "verification": {"kl": 0.019}}
    assert found["calibration"]["rules"] == {"0": "query"}
    assert found["calibration"]["weights"] == {"name": "int4", "kl": 0.0421, "perplexity_increase": 0.0317}
    shown = re.sub(r"<[^>]*>", "", out.read_text(encoding="utf-8"))
    assert "against the same int4 weights. These alone cost a KL of 0.0421 nats per token and +3.17" in shown
    assert found["calibration"]["notes"] == ["the verification part shows more"]
    assert found["trade_off"]["saving"] == "kv_bytes_per_token"
    assert '<p class="key">kl=0.02</p>' in out.read_text(encoding="utf-8")

    # A conversion names it after the model, and that one goes first.
    beside.write_text(json.dumps(_calibration(_plan(0.7), config)))
    own = tmp_path / "planned.deltallm.json"
    own.write_text(json.dumps(_calibration(_plan(0.5), config)))
    assert run_here(capsys, "report", *files).code == 0
    assert json.loads(data.read_text())["calibration"]["file"] == "planned.deltallm.json"
    own.unlink()

    outcome = run_here(capsys, "report", *files)
    assert outcome.code == 0
    assert "not written with the thresholds of the deltallm.json beside it" in outcome.err
    assert json.loads(data.read_text())["calibration"] is None

    assert run_here(capsys, "report", *files, "--calibration", beside).code == 0
    assert not json.loads(data.read_text())["calibration"]["own"]
    page = out.read_text(encoding="utf-8")
    assert '<p class="key">kl=0.02</p>' not in page
    assert "is not what the model was written with" in page


def test_a_baseline_is_traced_from_a_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `eval` does it: the same numbers as with the file that `convert --dense` writes."""
    source, dense, model = tmp_path / "source", tmp_path / "dense" / "dense.onnx", tmp_path / "dense" / "x.onnx"
    save_tiny("llama", source)
    save_letter_tokenizer(source)
    dense.parent.mkdir()
    assert run_here(capsys, "convert", source, dense, "--dense").code == 0
    assert run_here(capsys, "rewrite", dense, model, "--threshold", 0.9, "--window", 8).code == 0
    (tmp_path / "letters.txt").write_text("the quick brown fox " * 40)
    found = {}
    for baseline in (source, dense):
        data = tmp_path / f"{baseline.name}.json"
        files = ("--text", tmp_path / "letters.txt", "-o", tmp_path / "report.html", "--json", data)
        outcome = run_here(capsys, "report", model, "--baseline", baseline, *files, *QUICK)
        assert outcome.code == 0, outcome
        found[baseline] = json.loads(data.read_text())
    assert found[source]["quality"]["kl"] == found[dense]["quality"]["kl"] > 0
    assert found[source]["baseline"] == {"file": str(source)}
    assert found[dense]["baseline"] == {"file": "dense.onnx"}


Case = Callable[[ReportModels, Path], Arguments]


def _text(content: str | bytes) -> Case:
    def case(models: ReportModels, folder: Path) -> Arguments:
        path = folder / "text.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return [models.int8, "--text", path]

    return case


def _json(option: str, content: str) -> Case:
    def case(models: ReportModels, folder: Path) -> Arguments:
        path = folder / "file.json"
        path.write_text(content)
        return [models.int8, option, path]

    return case


REFUSALS: dict[str, tuple[Case, str]] = {
    "no such model": (lambda _m, folder: [folder / "none.onnx"], "There is no file"),
    "a dense model": (lambda m, _f: [m.dense], "is a dense model, with nothing to report"),
    "no model at all": (lambda m, _f: [m.text], "is not an ONNX model"),
    "no such text": (lambda m, folder: [m.int8, "--text", folder / "none"], "Cannot read the text"),
    "an empty text": (_text(" \n"), "is empty: give one"),
    "a text within the window": (_text(letters(10)), "keeps 9 tokens exact (sinks and window): give a longer text."),
    "a text of few tokens": (_text("abc de"), "text.txt has 6 tokens, and the model keeps 9 tokens exact"),
    "a text that is none": (_text(b"\xff\xfe\x00"), "is not UTF-8"),
    "a text shorter than a window": (
        lambda m, f: [*_text(letters(30))(m, f), "--window-tokens", "60"],
        "The text has 30 tokens, 1 windows of 60 need 60",
    ),
    "windows within the window": (
        lambda m, _f: [m.int8, "--text", m.text, "--window-tokens", "8"],
        "is read in windows of 8 tokens, and the model keeps 9 tokens exact (sinks and window): give longer windows.",
    ),
    "windows beyond the context": (
        lambda m, _f: [m.int8, "--text", m.text, "--window-tokens", "231"],
        "longer than the model's context of 230",
    ),
    "no windows": (lambda m, _f: [m.int8, "--windows", "0"], "windows is 0: give a whole number from 1 to 4096."),
    "a baseline without a text": (lambda m, _f: [m.int8, "--baseline", m.dense], "give --text FILE."),
    "a baseline folder without a text": (lambda m, f: [m.int8, "--baseline", f], "give --text FILE."),
    "a baseline folder without a model": (
        lambda m, f: [m.int8, "--baseline", f, "--text", m.text],
        "has no config.json",
    ),
    "a rewritten baseline": (
        lambda m, _f: [m.int8, "--baseline", m.element, "--text", m.text],
        "is a rewritten model: give the dense one",
    ),
    "no such calibration": (lambda m, f: [m.int8, "--calibration", f / "none"], "Cannot read the calibration"),
    "a corrupt calibration": (_json("--calibration", '{"format": '), "is not JSON"),
    "a calibration in a list": (_json("--calibration", "[]"), "is no calibration"),
    "another kind of file": (_json("--calibration", '{"format": "x"}'), "is no calibration"),
    "a calibration without layers": (
        _json("--calibration", '{"format": "deltallm-calibration", "version": 1, "config": {}}'),
        "has no 'layers'",
    ),
    "no such study": (lambda m, f: [m.int8, "--study", f / "none"], "There is no file"),
    "a corrupt study": (_json("--study", "{"), "cannot be read as JSON"),
    "a study in a list": (_json("--study", "[]"), "holds a list, not one JSON object"),
    "a deep file": (_json("--record", "[" * 99999), "cannot be read as JSON"),
    "a study without points": (_json("--study", '{"trials": []}'), "holds no measurement with kl"),
    "a record without timings": (_json("--record", "{}"), "holds no timings"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(models: ReportModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    arguments, sentence = REFUSALS[case]
    given = arguments(models, tmp_path)
    before = files_below(tmp_path)
    outcome = run_here(capsys, "report", *given, "-o", tmp_path / "report.html", "--json", tmp_path / "report.json")
    assert outcome.code == 2
    assert outcome.out == ""
    assert sentence in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a directory"),
        ("none/report.html", "does not exist"),
        ("model.onnx", "would replace a file that is read"),
    ],
)
def test_a_page_that_cannot_be_written(
    models: ReportModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(models.int8.read_bytes())
    before = files_below(tmp_path)
    outcome = run_here(capsys, "report", tmp_path / "model.onnx", "-o", tmp_path / name)
    assert outcome.code == 2
    assert sentence in outcome.err
    assert files_below(tmp_path) == before


def test_broken_predictions_are_told(
    models: ReportModels, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a model with broken weights gives is no number to report."""
    from deltallm_onnx.report import reading  # noqa: PLC0415  # patched below

    whole = reading.score

    def broken(*arguments: object) -> object:
        found = whole(*arguments)  # type: ignore[arg-type]  # passed through as they came
        found.loss[3] = float("nan")
        return found

    monkeypatch.setattr(reading, "score", broken)
    outcome = run_here(capsys, "report", models.int8, "--text", models.text, *QUICK, "-o", tmp_path / "report.html")
    assert outcome.code == 2
    assert "not finite numbers" in outcome.err
    assert not list(tmp_path.iterdir())
