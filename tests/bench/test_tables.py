"""The published tables say what the records say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import tables
from bench.geometry import GEOMETRIES
from bench.plot import series
from deltallm_onnx.errors import DeltaLLMError


def spread(median: float) -> dict[str, float]:
    return {"median": median, "lower": median * 0.9, "upper": median * 1.1}


def row(name: str, microseconds: float, speedups: dict[str, float], **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "microseconds": spread(microseconds),
        "bytes": 2_500_000,
        "operations": 33_600_000,
        "least_microseconds": 100.0,
        "share_of_roofline": 0.25,
        "relative_error": 0.00128,
        "fastest_peer": "GQA int8",
        "speedups": {other: spread(ratio) for other, ratio in speedups.items()},
        **changes,
    }


def record(suite: str = "decode", *, past: tuple[int, ...] = (1024, 4096), threads: tuple[int, ...] = (1, 2)) -> Any:
    return {
        "suite": suite,
        "cpu": "a processor",
        "cpus": 2,
        "date": "2026-01-02T03:04:05+00:00",
        "versions": {"onnxruntime": "1.2.3"},
        "machine_rates": {
            "1": {
                "read_bytes": 2.71e10,
                "float32_operations": 1e11,
                "bfloat16_operations": None,
                "int8_operations": 4e11,
            }
        },
        "geometry": {"name": "toy"},
        "results": [
            {
                "past_tokens": tokens if suite != "prompt" else 0,
                "new_tokens": 1 if suite != "prompt" else tokens,
                "threads": count,
                "contenders": [
                    row("GQA float32", 500.0 * count, {"GQA int8": 0.8}),
                    row("GQA int8", 400.0 * count, {}),
                    row("ours int8", 40.0 * count, {"GQA int8": 10.0 / count, "GQA float32": 12.5}),
                    row(
                        "ours int8, half held",
                        25.0 * count,
                        {"GQA int8": 16.0, "ours int8": 1.6},
                        relative_error=None,
                    ),
                ],
            }
            for count in threads
            for tokens in past
        ],
    }


def cells(table: str) -> list[list[str]]:
    lines = table.strip().splitlines()
    assert set(lines[1]) == {"|", "-"}
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    assert len({len(line) for line in found}) == 1
    return found


def test_ratios_are_against_the_fastest_peer_of_their_threads() -> None:
    head, *rows = cells(tables.ratios(record(), 2))
    assert head == ["past tokens", "fastest GQA", "int8", "int8, half held"]
    assert rows[1] == ["4096", "800 µs (GQA int8)", "5× (4.5–5.5)", "16× (14.4–17.6)"]
    assert [line[0] for line in rows] == ["1024", "4096"]


def test_prompts_are_named_by_their_new_tokens() -> None:
    head, *rows = cells(tables.ratios(record("prompt", past=(3, 70)), 1))
    assert head[0] == "tokens"
    assert [line[0] for line in rows] == ["3", "70"]


def test_a_contender_that_could_not_run_leaves_a_dash() -> None:
    some = record()
    del some["results"][0]["contenders"][2]
    _, first, second, *_ = cells(tables.ratios(some, 1))
    assert first[2:] == ["16× (14.4–17.6)", "–"] or first[2:] == ["–", "16× (14.4–17.6)"]
    assert "–" not in second


def test_comparisons_among_our_own() -> None:
    _, *rows = cells(tables.against(record()))
    assert rows[0] == ["1024", "ours int8, half held", "25 µs", "ours int8", "1.6× (1.44–1.76)"]
    assert len(rows) == 2


def test_the_roofline_has_every_contender_and_megabytes() -> None:
    _, *rows = cells(tables.roofline(record()))
    assert len(rows) == 2 * 4
    assert rows[2] == ["1024", "ours int8", "40 (36–44)", "2.50", "33.6", "100", "25%"]


def test_a_token_costs_the_slope_and_not_the_call() -> None:
    some = record(past=(1000, 3000))
    for row_ in some["results"][1]["contenders"]:
        row_["microseconds"] = spread(row_["microseconds"]["median"] + 50.0)
    head, *rows = cells(tables.slopes(some))
    assert head[1] == "ns per token from 1000 to 3000"
    assert rows[2] == ["ours int8", "25"]  # 50 µs over 2000 tokens


def test_a_key_of_a_prompt_costs_its_share_of_the_causal_pairs() -> None:
    head, *rows = cells(tables.per_pair(record("prompt", past=(3, 7))))
    assert head[0] == "prompt of 7 tokens"
    assert rows[2] == ["ours int8", f"{40e3 / 28:.0f}", "10× (9–11)"]


def test_errors_are_those_of_the_longest_setting() -> None:
    _, *rows = cells(tables.errors([record(), record("prompt", past=(3, 70))]))
    assert rows[0] == ["decode, 4096 + 1 tokens", "GQA float32", "1.3e-03"]
    assert [line[1] for line in rows].count("ours int8") == 2
    assert "ours int8, half held" not in [line[1] for line in rows]
    assert rows[-1][0] == "prompt, 0 + 70 tokens"


def test_the_machine_and_what_it_lacks() -> None:
    text = tables.machine(record())
    assert text.startswith("a processor, 2 cores; onnxruntime 1.2.3; 2026-01-02.\n")
    assert cells(text.split("\n\n")[1])[1] == ["1", "27", "100", "–", "400"]


def test_the_short_table_of_the_readme() -> None:
    head, *rows = cells(tables.decode_in_short(record()))
    assert head[2:] == ["ours int8 cache"]
    assert rows[0] == ["1024", "400 µs", "40 µs (10×)"]


def test_every_geometry_has_its_rows(tmp_path: Path) -> None:
    for i, geometry in enumerate(GEOMETRIES):
        (tmp_path / f"attention-decode-{geometry}.json").write_text(json.dumps(record(past=(256 + i,))))
    _, *rows = cells(tables.all_geometries("decode", tmp_path))
    assert [line[:2] for line in rows] == [[name, str(256 + i)] for i, name in enumerate(GEOMETRIES)]


def test_whole_models() -> None:
    contenders = [
        {"name": "GQA int8", "tokens_per_second": 7.125, "fastest_peer": "GQA int8", "speedups": {}},
        {
            "name": "ours int8",
            "tokens_per_second": 21.5,
            "fastest_peer": "GQA int8",
            "speedups": {"GQA int8": spread(3)},
        },
    ]
    memory = [
        {"name": name, "past_tokens": 512, "kv_bytes": kv << 20, "resident_bytes": None, "peak_resident_bytes": 1 << 30}
        for name, kv in (("GQA int8", 8), ("ours int8", 9))
    ]
    some = {"results": [{"threads": 1, "past_tokens": 512, "contenders": contenders}], "memory": memory}
    assert cells(tables.whole_model(some))[1] == ["1", "512", "7.12", "21.5, 3× (2.7–3.3)"]
    assert cells(tables.whole_model_memory(some))[1] == ["512", "8 / – / 1024", "9 / – / 1024"]


def test_a_page_is_filled_between_its_markers_only() -> None:
    page = "head\n<!-- table a -->\nold\n<!-- end -->\nmiddle\n<!-- table b -->\n<!-- end -->\nend <!-- end -->"
    text, problems = tables.filled(page, {"a": lambda: "| A |\n", "b": lambda: "| B |\n"})
    assert text == (
        "head\n<!-- table a -->\n| A |\n<!-- end -->\nmiddle\n<!-- table b -->\n| B |\n<!-- end -->\nend <!-- end -->"
    )
    assert problems == []
    assert tables.filled(text, {"a": lambda: "| A |\n", "b": lambda: "| B |\n"})[0] == text


def test_a_table_without_its_record_stays_as_it_was(tmp_path: Path) -> None:
    page = "<!-- table a -->\nold\n<!-- end -->"
    text, (problem,) = tables.filled(page, {"a": lambda: str(tables.load("nothing", tmp_path))})
    assert text == page
    assert re.match(r"a: There is no record .*nothing\.json: take it with its benchmark", problem)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="asks for the table 'c': choose one of a"):
        tables.filled("<!-- table c -->\n<!-- end -->", {"a": str})


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda path: path.name)
def test_the_committed_pages_are_what_the_committed_records_give(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text)[0] == text, "run 'python -m bench.tables'"


def test_the_plot_leaves_out_prompts_that_are_mostly_the_cost_of_calling() -> None:
    found = series(record("prompt", past=(3, 16, 70)), "new_tokens")
    assert [point[0] for point in found["int8"]] == [16, 70]
    tokens, median, lower, upper = found["int8"][0]
    assert (tokens, median) == (16, 10.0)
    assert lower < median < upper
    assert set(found) == {"int8", "int8, half held"}
