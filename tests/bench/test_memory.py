"""The benchmark of memory settings, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import memory
from bench.tables import RECORDS


def test_settings_are_measured_in_processes_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--config", "toy", "--context", "61", "--chunk", "20", "--steps", "3", "--rounds", "1"]
    chosen = ["--caches", "ours int8", "GQA float32", "--settings", "defaults", "no arena", "low memory"]
    memory.main([*sizes, *chosen, "--folder", str(tmp_path / "models"), "--record", str(tmp_path)])
    record = json.loads((tmp_path / "memory-toy-chunk20.json").read_text())
    rows = [(row["cache"], row["settings"]) for row in record["results"]]
    first = [("ours int8", settings) for settings in ("defaults", "no arena", "low memory")]
    assert rows == [*first, ("GQA float32", "defaults"), ("GQA float32", "low memory")]
    for row in record["results"]:
        assert record["plans"][row["cache"]]["cache_bytes"] == row["kv_bytes"]
        assert row["peak_bytes"] > 0
        assert row["decode_tokens_per_second"] > 0
    assert "low memory" in capsys.readouterr().out


def test_too_short_a_context(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        memory.main(["--context", "16", "--steps", "16"])
    assert left.value.code == 2
    assert "context is 16: give more tokens than the 16 decoded ones." in capsys.readouterr().err


def test_the_records_keep_the_promise_of_the_plan() -> None:
    """But for sessions without prepacking, which the plan is not made for."""
    records = [json.loads(path.read_text()) for path in RECORDS.glob("memory-*.json")]
    rows = [(row, record["plans"][row["cache"]]["total_bytes"]) for record in records for row in record["results"]]
    assert rows
    for row, planned in rows:
        if row["settings"] != "no prepacking":
            assert row["peak_bytes"] <= planned <= 1.5 * row["peak_bytes"], row
