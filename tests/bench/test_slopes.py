"""Slopes over lengths, and the tables made of them."""

from __future__ import annotations

from typing import Any

import pytest

from bench import tables
from bench.slopes import per_past_token, per_query_and_key, slopes
from deltallm_onnx.errors import DeltaLLMError


def result(past: int, new: int, microseconds: dict[str, float], *, wide: float = 0.0, threads: int = 1) -> Any:
    rows = [
        {
            "name": name,
            "microseconds": {"median": time, "lower": time * (1 - wide), "upper": time * (1 + wide)},
            "relative_error": 0.0078,
            "speedups": {"OpenVINO b": {"median": 3, "lower": 2, "upper": 4}} if name == "ours" else {},
        }
        for name, time in microseconds.items()
    ]
    return {"past_tokens": past, "new_tokens": new, "threads": threads, "contenders": rows}


def step(past: int, **changes: Any) -> Any:
    times = {"OpenVINO a": 7.0 + 0.4 * past, "OpenVINO b": 90.0 + 0.2 * past, "ours": 30.0 + 0.05 * past}
    return result(past, 1, times, **changes)


def prompt(new: int, past: int = 0) -> Any:
    pairs = sum(past + i + 1 for i in range(new))
    return result(past, new, {"OpenVINO a": 2.0 * new + 0.06 * pairs, "ours": 5.0 * new + 0.04 * pairs})


def test_a_past_token_costs_the_slope_and_not_the_call() -> None:
    found = slopes([step(4096), step(300), step(1024)], per_past_token)
    assert {name: cost.median for name, cost in found.items()} == pytest.approx(
        {"OpenVINO a": 400, "OpenVINO b": 200, "ours": 50}
    )


def test_a_query_and_key_cost_the_quadratic_term_alone() -> None:
    found = slopes([prompt(70), prompt(515)], per_query_and_key)
    assert {name: cost.median for name, cost in found.items()} == pytest.approx({"OpenVINO a": 60, "ours": 40})
    found = slopes([prompt(70, past=11), prompt(515, past=300)], per_query_and_key)
    assert {name: cost.median for name, cost in found.items()} == pytest.approx({"OpenVINO a": 60, "ours": 40})


def test_the_spread_is_that_of_lines_between_the_quartiles() -> None:
    cost = slopes([step(1000, wide=0.1), step(3000, wide=0.1)], per_past_token)["ours"]
    # 80 and 180 µs, each 10 % up and down.
    assert (cost.lower, cost.median, cost.upper) == pytest.approx(((162 - 88) / 2, 50, (198 - 72) / 2))


def test_who_was_not_measured_at_both_ends_has_no_slope() -> None:
    short = step(1000)
    del short["contenders"][1]
    assert list(slopes([short, step(3000)], per_past_token)) == ["OpenVINO a", "ours"]


@pytest.mark.parametrize("lengths", [[], [300], [300, 300]])
def test_one_length_has_no_slope(lengths: list[int]) -> None:
    with pytest.raises(DeltaLLMError, match="needs results at two lengths"):
        slopes([step(past) for past in lengths], per_past_token)


def test_the_tables_set_everyone_beside_the_best_of_openvino() -> None:
    record = {"results": [prompt(70), step(4096), step(1024), prompt(515), step(1024, threads=2)]}
    head, line, *rows = [row.strip("|\n").split("|") for row in tables.decode_costs(record).splitlines()]
    assert set("".join(line)) == {"-"}
    assert [cell.strip() for cell in head] == [
        "contender",
        "µs at 1024",
        "µs at 4096",
        "ns per past token",
        "OpenVINO's fewest / these",
        "times as fast as OpenVINO b at 4096",
        "relative error at 4096",
    ]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[0] == ["OpenVINO a", "417", "1645", "400 (400–400)", "0.50", "–", "7.8e-03"]
    assert cells[2] == ["ours", "81", "235", "50 (50–50)", "4.00", "3× (2–4)", "7.8e-03"]
    assert "| ours | 449 | 7890 | 40 (40–40) | 1.50 | – | 7.8e-03 |" in tables.prompt_costs(record).replace(
        "3× (2–4)", "–"
    )


def test_a_slope_lost_in_noise_is_compared_with_none() -> None:
    noisy = [result(0, new, {"OpenVINO a": time, "ours": 9.0 * new}) for new, time in ((70, 900.0), (75, 901.0))]
    for row in tables.prompt_costs({"results": noisy}).splitlines()[2:]:
        assert row.split("|")[5].strip() == "–"


def test_versions_of_the_openvino_record() -> None:
    record = {
        "cpu": "a processor",
        "openvino": "2026.4.1-22982-abc",
        "versions": {"onnxruntime": "1.2.3"},
        "date": "2026-01-02T03:04:05+00:00",
    }
    assert tables.openvino(record) == "a processor; OpenVINO 2026.4.1, onnxruntime 1.2.3; 2026-01-02.\n"
