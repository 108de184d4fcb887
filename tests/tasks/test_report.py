"""Intervals, what is said to be chance, and the paper's table."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from deltallm_onnx.counters import Counters
from deltallm_onnx.tasks.intervals import Z95, paired_difference, wilson
from deltallm_onnx.tasks.paper import PaperReport
from deltallm_onnx.tasks.report import Metric, TaskReport, TaskScores


@pytest.mark.parametrize(("share", "items"), [(0.0, 7), (1.0, 3), (0.5, 50), (0.31, 400)])
def test_wilson_bounds_are_where_the_score_test_just_accepts(share: float, items: int) -> None:
    for bound in wilson(share, items):
        if 0 < bound < 1:
            assert abs(share - bound) == pytest.approx(Z95 * math.sqrt(bound * (1 - bound) / items), rel=1e-9)
    low, high = wilson(share, items)
    assert 0 <= low <= share <= high <= 1
    assert high - low > 0


def test_paired_difference() -> None:
    ours, theirs = [1.0, 0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0]
    differences = np.subtract(ours, theirs)
    mean, error = paired_difference(ours, theirs)
    assert mean == pytest.approx(differences.mean())
    assert error == pytest.approx(differences.std(ddof=1) / np.sqrt(5))
    assert paired_difference([1.0], [0.0]) == (1.0, None)


def test_chance_is_inside_or_outside_the_interval() -> None:
    assert Metric(0.56, 0.05, 100, chance=0.5).at_chance is True
    assert Metric(0.62, 0.05, 100, chance=0.5).at_chance is False
    # Below chance is not at chance either, and no error at all is no certainty.
    assert Metric(0.10, 0.03, 100, chance=0.25).at_chance is False
    assert Metric(1.0, 0.0, 3, chance=0.5).at_chance is True
    assert Metric(0.3, 0.1, 20).at_chance is None
    assert Metric(0.3, 0.1, 20).interval == pytest.approx((0.3 - 0.1 * Z95, 0.3 + 0.1 * Z95))


def scores(right: tuple[float, ...], counters: Counters | None, *, name: str = "acc") -> TaskScores:
    value, chance = sum(right) / len(right), 0.5 if name == "acc" else None
    metric = Metric(value, 0.1, len(right), chance, right)
    return TaskScores({name: metric}, len(right), 2 * len(right), 2.5, 500, counters)


HELD = Counters(delta_total=100, delta_zero=40, qk_macs_dense=800, qk_macs_skipped=200, pv_macs_dense=800, layers=2)
MORE = Counters(delta_total=60, delta_zero=30, qk_macs_dense=200, qk_macs_skipped=100, pv_macs_dense=200, layers=2)
NOTHING = Counters(qk_macs_dense=50, pv_macs_dense=50, layers=2)


def test_what_was_not_done_was_not_counted() -> None:
    """No row was coded and nothing decoded: 0 would be a claim."""
    found = scores((1.0, 0.0), NOTHING)
    assert found.counted is not None
    assert found.counted["delta_sparsity"] is None
    assert found.counted["kv_bytes_read"] is None
    assert found.counted["qk_mac_sparsity"] == 0
    assert found.to_dict()["counters"] == found.counted
    assert "delta_sparsity –" in report("prefill", {"piqa": found}, {}).lines[-2]
    assert scores((1.0, 0.0), None).counted is None


def report(mode: str, found: dict[str, TaskScores], dense: dict[str, TaskScores]) -> TaskReport:
    return TaskReport("x.onnx", "y.onnx" if dense else None, mode, 12, 3, found, dense, {"lm_eval": "0"})


def test_differences_are_over_the_same_items() -> None:
    ours, theirs = (1.0, 0.0, 1.0, 1.0), (1.0, 1.0, 1.0, 0.0)
    found = report("decode", {"piqa": scores(ours, HELD)}, {"piqa": scores(theirs, None)})
    assert found.differences("piqa")["acc"]["value"] == 0
    assert found.differences("piqa")["acc"]["items_changed"] == 2
    data = json.loads(json.dumps(found.to_dict()))["tasks"]["piqa"]
    assert data["counters"]["qk_mac_sparsity"] == 0.25
    assert data["baseline"]["counters"] is None
    assert data["tokens_per_second"] == 200
    text = "\n".join(found.lines)
    assert "at chance (50.0 %)" in text
    assert "2 items changed" in text
    assert "qk_mac_sparsity 0.25" in text


def test_the_interval_that_decides_is_shown() -> None:
    """Three wrong answers have no standard error, and yet prove nothing."""
    found = TaskScores({"acc": Metric(0.0, 0.0, 3, 0.5), "f1": Metric(0.5, 0.25, 3)}, 3, 6, 1.0, 10, None)
    low, high = wilson(0.0, 3)
    lines = report("decode", {"piqa": found}, {"piqa": found}).lines
    assert "in brackets 95 % intervals by Wilson's score" in lines[0]
    shown = f"0.0 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert lines[1].count(shown) == 2
    assert "at chance (50.0 %)" in lines[1]
    assert "±" not in lines[1]
    assert "50.0 % ± 25.0" in lines[2]


@pytest.mark.parametrize(("value", "words"), [(0.52, "at"), (0.31, "below"), (0.78, "above")])
def test_where_a_score_lies(value: float, words: str) -> None:
    found = TaskScores({"acc": Metric(value, 0.05, 100, chance=0.5)}, 100, 200, 1.0, 10, None)
    assert f" {words} chance (50.0 %)" in report("decode", {"piqa": found}, {}).lines[1]


def test_a_task_that_tests_nothing_says_so() -> None:
    held, short = ({"piqa": scores((1.0, 0.0), counters)} for counters in (HELD, NOTHING))
    assert any("says nothing of delta attention" in line for line in report("prefill", short, {}).lines)
    assert not any("says nothing of delta attention" in line for line in report("prefill", held, {}).lines)


def test_the_papers_table() -> None:
    many = (1.0,) * 30 + (0.0,) * 2
    dense = {"piqa": scores(many, None), "squadv2": scores((0.5, 0.25), None, name="f1")}
    both = {"piqa": scores((1.0, 0.0) * 16, HELD), "squadv2": scores((0.5, 0.0), MORE, name="f1")}
    table = PaperReport(
        report("prefill", {"piqa": scores(many, NOTHING)}, dense), report("prefill+decode", both, dense)
    )
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.lines[:4]]
    assert rows[0] == ["paper's sparsity", "qk_mac_sparsity", "piqa", "squadv2"]
    assert rows[1] == ["dense", "0 %", "0 %", "93.8 ± 10.0", "37.5 ± 10.0"]
    assert rows[2] == ["prefill only", "60 %", "0.0 %", "93.8 ± 10.0", "–"]
    # 200 + 100 of 800 + 200: over all tasks together, not a mean of means.
    assert rows[3] == ["prefill + decode", "57 %", "30.0 %", "50.0 ± 10.0 *", "25.0 ± 10.0"]
    assert any("at chance" in line for line in table.lines[4:])
    data = json.loads(json.dumps(table.to_dict()))
    assert data["qk_mac_sparsity"] == {"prefill": 0.0, "prefill+decode": 0.3}
    assert data["paper"]["attention_sparsity"] == {"prefill": 0.6, "prefill+decode": 0.57}
