from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltallm_onnx.bench import Measurement, Spread
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.speeds import read_record


def _spreads(*medians: float) -> tuple[Any, ...]:
    return tuple(Spread(median, 0.9 * median, 1.2 * median) for median in medians)


def test_a_record_of_the_bench_command(tmp_path: Path) -> None:
    """As `deltallm-onnx bench --json` writes it: seconds become milliseconds."""
    decode, prefill = _spreads(0.002, 0.003), _spreads(0.25, 0.5)
    measured = Measurement(320, 2, decode, *_spreads(1.5), prefill, *_spreads(2.0), load=0.5)
    record = {"benchmark": "two models", "cpu": "some CPU", "load": 0.25, "results": [measured.to_dict()]}
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    found = read_record(path)
    assert (found["file"], found["benchmark"], found["cpu"], found["load"]) == (
        "record.json",
        "two models",
        "some CPU",
        0.25,
    )
    rows = [(row["kind"], row["name"], row["past_tokens"], row["new_tokens"], row["threads"]) for row in found["rows"]]
    assert rows == [
        ("decode", "model", 320, 1, 2),
        ("decode", "baseline", 320, 1, 2),
        ("prefill", "model", 0, 320, 2),
        ("prefill", "baseline", 0, 320, 2),
    ]
    assert found["rows"][0]["milliseconds"] == pytest.approx({"median": 2, "lower": 1.8, "upper": 2.4})
    assert found["rows"][3]["milliseconds"] == pytest.approx({"median": 500, "lower": 450, "upper": 600})
    assert found["speedups"] == [
        {"kind": "decode", "tokens": 320, "threads": 2, "speedup": 1.5},
        {"kind": "prefill", "tokens": 320, "threads": 2, "speedup": 2.0},
    ]


def test_a_record_of_one_layer(tmp_path: Path) -> None:
    """As bench/ writes it: microseconds, several contenders, and some that could not be measured."""
    contenders = [
        {"name": "ours int8", "microseconds": {"median": 40.0, "lower": 30.0, "upper": 70.0}},
        {"name": "broken", "microseconds": {"median": None}},
        {"name": "whole", "milliseconds": {"median": 7.0}},
        "nonsense",
    ]
    results = [
        {"past_tokens": 64, "new_tokens": 16, "threads": 1, "contenders": contenders},
        {"contenders": contenders},
    ]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"geometry": {"name": "Tiny"}, "results": results}))
    found = read_record(path)
    assert found["subject"] == "Tiny"
    assert [(row["name"], row["kind"], row["milliseconds"]["median"]) for row in found["rows"]] == [
        ("ours int8", "prefill", 0.04),
        ("whole", "prefill", 7.0),
    ]
    assert found["rows"][1]["milliseconds"] == {"median": 7.0, "lower": 7.0, "upper": 7.0}


def test_committed_records_are_read() -> None:
    records = Path(__file__).parents[2] / "bench" / "records"
    for name in ("attention-decode-Llama-3.2-1B", "attention-prompt-Llama-3.2-1B", "whole-model-Llama-3.2-1B"):
        data = json.loads((records / f"{name}.json").read_text())
        timed = sum(len(result["contenders"]) for result in data["results"])
        assert len(read_record(records / f"{name}.json")["rows"]) == min(timed, 400)


@pytest.mark.parametrize("text", ["{}", '{"results": [1, {}]}', '{"results": {"median": 1}}'])
def test_a_record_without_timings_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DeltaLLMError, match="holds no timings"):
        read_record(tmp_path / "record.json")
