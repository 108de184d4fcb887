"""From settings to the record and the page: what is chosen, what is measured twice, what the tables say."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from bench.baselines import __main__ as command
from bench.baselines import tables
from bench.baselines.budgets import CALIBRATED, FAMILIES, PLAIN, QUEST, RATIOS, STREAMING, best
from bench.baselines.journal import Journal, key
from bench.baselines.plot import draw, points
from bench.baselines.settings import baselines
from bench.tables import filled, load
from deltallm_onnx.errors import DeltaLLMError

PLOT = command.PAGE.with_suffix(".svg")


class Here:
    """An executor without processes."""

    @staticmethod
    def submit(measure: Any, item: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(measure(item))
        return done


def test_a_killed_study_measures_nothing_twice(tmp_path: Path) -> None:
    path, measured = tmp_path / "study.journal", []

    def square(x: int) -> dict[str, int]:
        measured.append(x)
        return {"square": x * x}

    numbers = [3, 1, 2]
    keys = [key("square", x) for x in numbers]
    assert Journal(path).map(Here, square, keys[:2], numbers[:2]) == [{"square": 9}, {"square": 1}]
    with path.open("a") as file:
        file.write('{"key": "half')
    again = Journal(path)
    assert again.map(Here, square, keys, numbers) == [{"square": 9}, {"square": 1}, {"square": 4}]
    assert measured == [3, 1, 2]
    assert again.find(keys[2], lambda: pytest.fail("known")) == {"square": 4}
    assert Journal(path).find("other", lambda: 5) == 5
    assert len(path.read_text().splitlines()) == 4


def row(family: str, kl: float, kept: float, read: float, /, **knobs: Any) -> dict[str, Any]:
    return {"family": family, "knobs": knobs, "kl": kl, "kv_bytes_per_token": kept, "kv_bytes_read": read}


TUNED = [
    row(PLAIN, 0, 1200, 4096 * 1024, rows="float32"),
    row(STREAMING, 0.3, 60, 40 * 1024, kept=9),
    row(STREAMING, 0.02, 100, 90 * 1024, kept=16),
    row(STREAMING, 0.03, 90, 95 * 1024, kept=15),
    row(CALIBRATED, 0.01, 100, 200 * 1024, rows="int8"),
]


def test_the_nearest_within_a_budget_is_chosen() -> None:
    assert best(TUNED, STREAMING, "kv_bytes_per_token", 100) == 2
    assert best(TUNED, STREAMING, "kv_bytes_per_token", 99) == 3
    assert best(TUNED, STREAMING, "kv_bytes_read", 89 * 1024) == 1
    assert best(TUNED, STREAMING, "kv_bytes_per_token", 59) is None
    assert best(TUNED, QUEST, "kv_bytes_per_token", 1e9) is None


def test_every_family_has_settings_of_its_own() -> None:
    grid = [json.dumps(setting.to_dict()) for setting in baselines()]
    assert len(set(grid)) == len(grid)
    families = {setting.family for setting in baselines()}
    assert families == set(FAMILIES[:-2])


def record() -> dict[str, Any]:
    def measured(at: int, kl: float) -> dict[str, Any]:
        more = {"kl_by_position": [0.0, kl, kl, 2 * kl], "perplexity": 50 + kl, "top1_agreement": 0.987}
        return {
            **TUNED[at],
            "tuned": at,
            "kl": kl,
            **more,
            "repeated_sequence_loss": {"0.7": 8.5, "0.9": 7 + kl, "None": 9.0},
        }

    oracle = measured(4, 0.011)
    return {
        "settings": {
            "model": "m",
            "heads": [4, 2],
            "head_size": 64,
            "layers": 5,
            "windows": 8,
            "tokens": 1024,
            "tuning_windows": 2,
        },
        "dense": measured(0, 0.0),
        "tuned": TUNED,
        "results": [measured(0, 0.0), measured(1, 0.4), measured(2, 0.025), measured(3, 0.02), oracle],
        "operator": [{"knobs": oracle["knobs"], "oracle": oracle, "operator": {**oracle, "kl": 0.0112}}],
    }


def test_tables_show_the_held_out_numbers_of_what_was_chosen() -> None:
    assert RATIOS == (3, 4, 8, 12, 16, 32)
    kept = tables.budget_table(record(), "kv_bytes_per_token").splitlines()
    assert kept[0].split(" | ")[2:5] == ["1/4: 300 bytes", "1/8: 150 bytes", "1/12: 100 bytes"]
    # Chosen on the tuning text: 16 rows at 100 bytes, although 15 turned out better; nothing at 1/32.
    assert kept[2 + FAMILIES.index(STREAMING)] == "| StreamingLLM | 0.025 | 0.025 | 0.025 | 0.025 | **0.4** | – |"
    assert kept[2 + FAMILIES.index(CALIBRATED)] == f"| delta, calibrated | {'**0.011** | ' * 4}– | – |"
    lines = tables.chosen_table(record(), "kv_bytes_per_token", 12).splitlines()
    assert lines[2].startswith("| dense, float32 |  | 1200 | 4096 | 0 | 0 | 50.00 |")
    assert lines[3] == "| StreamingLLM | 16 rows | 100 | 90 | 0.025 | 0.05 | 50.02 | 98.7 % | 8.50 | 7.03 | 9.00 |"
    assert "| int8 | 0.011 | 0.0112 |" in tables.operator_table(record())


def test_a_family_without_anything_within_a_budget_leaves_a_dash() -> None:
    read = tables.budget_table(record(), "kv_bytes_read").splitlines()
    assert read[2 + FAMILIES.index(QUEST)] == "| Quest | – | – | – | – | – | – |"
    assert read[2 + FAMILIES.index(CALIBRATED)].count("–") == 1


def test_the_plot_is_the_same_for_the_same_record(tmp_path: Path) -> None:
    assert points(record(), STREAMING, "kv_bytes_per_token", quarter=False) == [(60, 0.4), (90, 0.02)]
    assert points(record(), STREAMING, "kv_bytes_read", quarter=True) == [
        (40 * 1024, 0.8),
        (90 * 1024, 0.05),
        (95 * 1024, 0.04),
    ]
    for name in ("one.svg", "two.svg"):
        draw(record(), tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert all(name in drawn for name in (STREAMING, CALIBRATED, "bytes kept per token and layer"))
    assert QUEST not in drawn


def test_a_page_is_filled_in_and_drawn(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# T\n<!-- table baselines, kept -->\nold\n<!-- end -->\n")
    with pytest.raises(DeltaLLMError, match="There is no record"):
        command.write_page(page, tmp_path)
    (tmp_path / "baselines.json").write_text(json.dumps(record()))
    assert command.write_page(page, tmp_path) == []
    assert "| delta, calibrated | **0.011**" in page.read_text()
    assert (tmp_path / "page.svg").is_file()


def test_a_missing_folder_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.baselines", "--record", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == 2
    assert "none" in capsys.readouterr().err


def test_the_committed_page_and_plot_are_what_the_committed_record_gives(tmp_path: Path) -> None:
    text = command.PAGE.read_text(encoding="utf-8")
    page, problems = filled(text, tables.tables())
    assert not problems
    assert page == text, "run 'python -m bench.baselines --tables'"
    assert all(f"<!-- table {name} -->" in text for name in tables.tables())
    draw(load(tables.RECORD), tmp_path / "plot.svg")
    drawn, committed = (path.read_text(encoding="utf-8") for path in (tmp_path / "plot.svg", PLOT))
    # Versions of matplotlib write paths differently; the words and the numbers on the axes are the record's.
    assert words(drawn) == words(committed)


def words(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)
