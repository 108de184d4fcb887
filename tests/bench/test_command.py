"""`deltallm-onnx bench` as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import files_below, run_here
from support.tiny_decoder import save_tiny_decoder

MODELS = ("a/tiny.onnx", "--baseline", "b/tiny.onnx")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny_decoder(tmp_path / "a", grouped_query=True)
    save_tiny_decoder(tmp_path / "b")
    (tmp_path / "bad.onnx").write_bytes((tmp_path / "a" / "tiny.onnx").read_bytes()[:4000])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_and_the_record_hold_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--past", "20,45", "--threads", "1", "--steps", "4", "--no-memory", "--json", "r.json")
    outcome = run_here(capsys, "bench", *MODELS, *settings)
    assert outcome.code == 0, outcome
    record = json.loads(Path("r.json").read_text())
    lines = [line for line in outcome.out.splitlines() if line.startswith("│")]
    assert [line.split()[3] for line in lines] == ["20", "45"]
    for line, result in zip(lines, record["results"], strict=True):
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert float(cells[2]) == pytest.approx(result["decode"]["model"]["tokens_per_second"], rel=1e-2)
        assert float(cells[6]) == pytest.approx(result["prefill"]["baseline"]["tokens_per_second"], rel=1e-2)
        assert float(cells[4].split("×")[0]) == pytest.approx(result["decode"]["speedup"]["median"], rel=1e-2)
    assert "a/tiny.onnx, caches updated in place" in outcome.err
    assert "b/tiny.onnx, caches copied each step" in outcome.err
    assert "peak" not in outcome.err


def test_memory_is_told_where_it_was_not_declined(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "bench", *MODELS, "--past", "33", "--threads", "1", "--steps", "2")
    assert outcome.code == 0, outcome
    assert outcome.err.count("after 33 tokens caches ") == 2
    assert outcome.err.count("peak memory ") == 2


REFUSALS = {
    "no baseline": (("a/tiny.onnx",), "Missing option '--baseline'"),
    "no such model": (("c.onnx", "--baseline", "b/tiny.onnx"), "There is no file c.onnx"),
    "no such baseline": (("a/tiny.onnx", "--baseline", "c.onnx"), "There is no file c.onnx"),
    "cut short": (("a/tiny.onnx", "--baseline", "bad.onnx"), "bad.onnx is not an ONNX model, or is cut short"),
    "past no number": ((*MODELS, "--past", "12,x"), "past is '12,x': give whole numbers of at least 1"),
    "past 0": ((*MODELS, "--past", "0"), "past is '0'"),
    "past empty": ((*MODELS, "--past", ""), "past is ''"),
    "threads 0": ((*MODELS, "--threads", "1,0"), "threads is '1,0'"),
    "steps 0": ((*MODELS, "--past", "9", "--steps", "0"), "steps is 0: give a whole number of at least 1"),
    "chunk -1": ((*MODELS, "--past", "9", "--chunk", "-1"), "chunk is -1: give a whole number of at least 0"),
    "record in no folder": ((*MODELS, "--past", "9", "--json", "no/r.json"), "The folder no does not exist"),
    "record is a folder": ((*MODELS, "--past", "9", "--json", "a"), "a is a directory"),
    "past beyond the model": ((*MODELS, "--past", "500", "--threads", "1"), "ONNX Runtime stopped in"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_ends_in_one_sentence_and_leaves_nothing(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, sentence = REFUSALS[case]
    before = files_below(folder)
    outcome = run_here(capsys, "bench", *arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith("error: ")
    assert sentence in line
    assert files_below(folder) == before
