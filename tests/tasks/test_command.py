"""`deltallm-onnx eval --tasks`: options, what is passed on and printed, and life without the harness."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.command_line import run_here

import deltallm_onnx.tasks
from deltallm_onnx.tasks import Metric, PaperReport, TaskReport, TaskScores


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What run_tasks and run_paper are called with; they answer with a report of one task."""
    found: list[dict[str, Any]] = []
    scores = TaskScores({"acc": Metric(0.75, 0.25, 4, chance=0.5)}, 4, 8, 1.5, 30, None)

    def report(mode: str) -> TaskReport:
        return TaskReport("x.onnx", None, mode, None, 0, {"piqa": scores}, {}, {})

    def run_tasks(model: Path, names: list[str], *, mode: str, **others: Any) -> TaskReport:
        found.append({"model": model, "names": names, "mode": mode, **others})
        return report(mode)

    def run_paper(model: Path, names: list[str], **others: Any) -> PaperReport:
        found.append({"model": model, "names": names, **others})
        return PaperReport(report("prefill"), report("prefill+decode"))

    monkeypatch.setattr(deltallm_onnx.tasks, "run_tasks", run_tasks)
    monkeypatch.setattr(deltallm_onnx.tasks, "run_paper", run_paper)
    return found


def test_options_reach_the_tasks(capsys: pytest.CaptureFixture[str], calls: list[dict[str, Any]]) -> None:
    options = ["--tasks", "winogrande, piqa", "--task-file", "piqa=some/file=1.jsonl", "--task-file", "own"]
    more = ["--limit", 7, "--mode", "decode", "--baseline", "y.onnx", "--tokenizer", "t", "--seed", 5, "--threads", 2]
    outcome = run_here(capsys, "eval", "x.onnx", *options, *more)
    assert outcome.code == 0, outcome.err
    assert "piqa           acc          75.0 % [30.1, 95.4]      at chance (50.0 %)" in outcome.out
    call = calls[0]
    assert callable(call.pop("progress"))
    assert call == {
        "model": Path("x.onnx"),
        "names": ["winogrande", "piqa"],
        "task_files": {"piqa": Path("some/file=1.jsonl")},
        "task_folders": [Path("own")],
        "limit": 7,
        "mode": "decode",
        "baseline": Path("y.onnx"),
        "tokenizer": Path("t"),
        "seed": 5,
        "threads": 2,
    }


def test_json_and_the_papers_layout(capsys: pytest.CaptureFixture[str], calls: list[dict[str, Any]]) -> None:
    data = run_here(capsys, "eval", "x.onnx", "--task-file", "own", "--json").json
    assert data["tasks"]["tasks"]["piqa"]["metrics"]["acc"]["at_chance"] is True
    assert calls[0]["mode"] == "prefill+decode"
    outcome = run_here(capsys, "eval", "x.onnx", "--tasks", "piqa", "--paper")
    assert outcome.out.split("\n")[0].split() == ["paper's", "sparsity", "qk_mac_sparsity", "piqa"]
    data = run_here(capsys, "eval", "x.onnx", "--tasks", "piqa", "--paper", "--json").json
    assert data["tasks"]["paper"]["source"] == "arXiv 2507.19608, abstract"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", "3", "--text", "t.txt"], "--limit is for tasks: name some with --tasks."),
        (["--paper", "--text", "t.txt"], "--paper is for tasks"),
        ([], "give a text with --text FILE, or tasks with --tasks."),
        (["--task-file", "piqa=a", "--task-file", "piqa=b"], "--task-file names two files for piqa: a and b."),
        (["--paper", "--mode", "decode", "--tasks", "piqa"], "two modes of its own: leave out --mode decode."),
        (["--tasks", " , "], "No task is named: give --tasks or --task-file."),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    outcome = run_here(capsys, "eval", "x.onnx", *arguments)
    assert outcome.code == 2
    assert words in outcome.err


def test_without_the_harness(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dense_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a))
    outcome = run_here(capsys, "eval", dense_path, "--tasks", "piqa")
    assert outcome.code == 2
    assert outcome.err == (
        "error: Tasks are evaluated by EleutherAI's lm-evaluation-harness, which is not installed: "
        "pip install 'deltallm-onnx[tasks]'.\n"
    )


def test_a_missing_tokenizer_is_told_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    outcome = run_here(capsys, "eval", tmp_path / "x.onnx", "--tasks", "piqa")
    assert outcome.code == 2
    assert f"There is no {tmp_path / 'tokenizer.json'}" in outcome.err
