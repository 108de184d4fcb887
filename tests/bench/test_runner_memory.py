"""The benchmark of the C++ program's memory, on a small model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.cpp_runner import native_runner

from bench import runner_memory
from bench.contenders import cache_layout, capacity_for
from bench.llama import TOY
from bench.memory import CACHES
from bench.runner_memory import watch
from bench.runner_memory_table import memory_table
from bench.tables import RECORDS
from deltallm_onnx.errors import DeltaLLMError

CONTEXT, STEPS = 301, 4


def test_forms_are_measured_in_processes_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_memory, "RUNNER", native_runner().program)
    sizes = ["--config", "toy", "--context", str(CONTEXT), "--chunk", "64", "--steps", str(STEPS)]
    chosen = ["--caches", "ours int4", "GQA float32"]
    runner_memory.main([*sizes, *chosen, "--folder", str(tmp_path / "models"), "--record", str(tmp_path)])
    record = json.loads((tmp_path / "runner-memory-toy.json").read_text())
    rows = [(row["cache"], row["form"]) for row in record["results"]]
    assert rows == [("ours int4", form) for form in runner_memory.FORMS] + [("GQA float32", ".onnx")]
    for row in record["results"]:
        contender = CACHES[row["cache"]]
        dtype, last = cache_layout(contender, TOY.geometry)
        # The program rounds up to whole tiles of 16 rows.
        capacity = -(-capacity_for(contender, TOY.geometry, CONTEXT) // 16) * 16
        assert row["kv_bytes"] == 2 * TOY.layers * TOY.geometry.kv_heads * capacity * last * dtype.itemsize
        assert row["peak_bytes"] >= row["resident_bytes"] >= row["resident_file_bytes"] > 0
        assert row["peak_bytes"] > row["kv_bytes"]
        assert row["prompt_tokens_per_second"] > 0
        assert row["decode_tokens_per_second"] > 0
    assert memory_table(record) in capsys.readouterr().out
    assert not list((tmp_path / "models").rglob("*.ort")), "what was written to be measured is removed"


PROGRAM = """
import sys, time
held = bytearray(b"x") * int(sys.argv[1])
print("5 ", end="", flush=True)
del held
time.sleep(0.2)
print("6 ", end="", flush=True)
time.sleep(0.2)
"""


def test_the_peak_is_of_the_process_alone() -> None:
    """What the parent holds does not count, and what was given back does."""
    held = bytearray(b"y") * (200 << 20)
    samples, _ = watch([sys.executable, "-c", PROGRAM, str(90 << 20)])
    del held
    assert [sample.tokens for sample in samples] == [1, 2]
    assert 90 << 20 <= samples[-1].status["VmHWM"] < 150 << 20
    assert samples[-1].status["VmRSS"] < 60 << 20


def test_a_refusal_of_the_program_is_handed_on() -> None:
    with pytest.raises(DeltaLLMError, match="deltallm_run ended with 3: no room"):
        watch([sys.executable, "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)"])


def test_too_short_a_context(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        runner_memory.main(["--context", "17", "--steps", "16"])
    assert left.value.code == 2
    assert "context is 17: give more tokens than the 16 decoded ones." in capsys.readouterr().err


def test_the_record_is_of_the_issues_setting() -> None:
    record = json.loads((RECORDS / "runner-memory-Llama-3.2-1B.json").read_text(encoding="utf-8"))
    assert (record["model"]["name"], record["context_tokens"], record["threads"]) == ("Llama-3.2-1B", 4096, 1)
    found = {(row["cache"], row["form"]): row for row in record["results"]}
    ours, theirs = found["ours int8", ".onnx"], found["GQA float32", ".onnx"]
    assert theirs["kv_bytes"] == 2 * 16 * 8 * 4096 * 64 * 4
    assert ours["kv_bytes"] == 2 * 16 * 8 * 4096 * 68
