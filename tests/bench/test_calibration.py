"""The study of calibrated thresholds: from the command line to the record, and its tables."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench import calibration, calibration_study
from bench.calibration_study import UNIFORM_RULES, windows_of
from bench.calibration_tables import KINDS, PAGE, TABLES, at_divergence, goal_table, spent
from bench.tables import filled
from deltallm_onnx.runtime import TextTokenizer

TOKENS, WINDOWS, WINDOW, SINKS = 91, 3, 17, 4
SCALES = {"row": (0.8, 1.3), "element": (0.9, 1.7, 3.0)}
BUDGET = 0.02


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("record")
    sizes = ["--tokens", str(TOKENS), "--windows", str(WINDOWS), "--window", str(WINDOW), "--sinks", str(SINKS)]
    rules = ["--row-rule", "query", "--element-rule", "uniform", "--calibration-windows", "6"]
    budgets = ["--budget", f"kl={BUDGET}", "--budget", "ppl=+1%"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration_study, "UNIFORM_SCALES", SCALES)
        calibration.main([*sizes, *rules, *budgets, "--record", str(folder), "--name", "small"])
    assert [path.name for path in folder.iterdir()] == ["small.json"]
    return dict(json.loads((folder / "small.json").read_text(encoding="utf-8")))


def test_every_budget_is_measured_on_held_out_text(record: dict) -> None:
    found = [(entry["granularity"], entry["budget"]["text"]) for entry in record["calibrated"]]
    assert found == [(g, b) for g in ("element", "row") for b in (f"kl={BUDGET}", "ppl=+1%")]
    for entry in record["calibrated"]:
        assert entry["held_out"]["windows"] == WINDOWS
        assert entry["held_out"]["tokens"] == WINDOWS * TOKENS
        assert set(entry["rules"].values()) == {"query" if entry["granularity"] == "row" else "uniform"}
        assert entry["windows_read"] > 6
        assert entry["text"]["name"] == "calibration.txt"  # no path of this machine
        assert 0 < entry["held_out"]["delta_sparsity"] <= 1
    assert record["held_out"]["sha256"] != record["calibrated"][0]["text"]["sha256"]


def test_the_search_part_keeps_the_budget(record: dict) -> None:
    for entry in record["calibrated"]:
        if entry["budget"]["metric"] == "kl":
            assert 0 < entry["reached"]["calibration"]["kl"] <= BUDGET


def test_one_threshold_stands_beside_it_by_every_rule(record: dict) -> None:
    names = [(row["granularity"], row["rule"]) for row in record["uniform"]]
    assert names == [(g, rule) for g in ("element", "row") for rule in UNIFORM_RULES[g] for _ in SCALES[g]]
    thresholds = [row["threshold"] for row in record["uniform"][: len(SCALES["element"])]]
    assert thresholds == sorted(thresholds)


def test_caches_are_measured_in_every_format_and_at_two_lengths(record: dict) -> None:
    rows = [row for row in record["caches"] if row["granularity"] == "row"]
    assert [(row["window_tokens"], row["cache_format"]) for row in rows] == [
        (tokens, cache_format) for tokens in (TOKENS, 2 * TOKENS) for cache_format in ("float32", "int8", "int4")
    ]
    # Five layers of 2 KV heads of 64 channels: keys and values, 4 bytes each, every row.
    assert rows[0]["kv_bytes_per_token"] == 2 * 2 * 64 * 4
    assert rows[1]["kv_bytes_per_token"] < 2 * 2 * 68


def test_values_are_left_out_with_every_key_exact(record: dict) -> None:
    shares = [row["values_skipped"] for row in record["v_skip"]]
    assert shares == sorted(shares)
    assert all(row["qk_mac_sparsity"] == 0 for row in record["v_skip"])


def test_the_window_alone_sees_less_than_the_dense_model(record: dict) -> None:
    alone = record["held_out"]["window_alone"]
    increase = alone["perplexity"] / record["held_out"]["dense_perplexity"] - 1
    assert alone["perplexity_increase"] == pytest.approx(increase)
    assert increase != 0


def test_every_table_can_be_made_of_a_record(record: dict) -> None:
    for make in KINDS.values():
        lines = make(record).splitlines()
        assert len(lines) > 2
        assert len({line.count("|") for line in lines}) == 1


def test_a_window_begins_as_a_text_does() -> None:
    text = calibration.MODEL / "validation.txt"
    found = windows_of(calibration.MODEL, text, 37, 2)
    ids = TextTokenizer(calibration.MODEL).encode(text.read_text(encoding="utf-8"))
    assert found.shape == (2, 37)
    np.testing.assert_array_equal(found[:, 0], ids[0])
    np.testing.assert_array_equal(found[0], ids[:37])


def test_a_counter_between_two_divergences_is_straight_over_the_logarithm() -> None:
    points = [{"kl": 0.04, "held": 0.9}, {"kl": 0.001, "held": 0.1}, {"kl": 0.01, "held": 0.5}]
    assert at_divergence(points, 0.02, "held") == pytest.approx(0.5 + 0.4 * math.log(2) / math.log(4))
    assert at_divergence(points, 0.01, "held") == pytest.approx(0.5)
    assert at_divergence(points, 0.0005, "held") is None
    assert at_divergence(points, 0.05, "held") is None


def test_the_share_of_a_budget_is_that_of_its_own_metric() -> None:
    held_out = {"kl": 0.03, "perplexity_increase": 0.004}
    assert spent({"budget": {"metric": "kl", "limit": 0.02}, "held_out": held_out}) == pytest.approx(1.5)
    assert spent({"budget": {"metric": "ppl", "limit": 0.005}, "held_out": held_out}) == pytest.approx(0.8)


def test_the_far_context_gain_kept_is_taken_in_nats() -> None:
    reached = {
        "delta_sparsity": 0.8,
        "kl": 0.01,
        "perplexity_increase": 0.01,
        "perplexity_increase_interval": [0.0, 0.02],
        "kv_bytes_per_token": 50.0,
        "baseline_kv_bytes_per_token": 1000.0,
    }
    entry = {"granularity": "row", "budget": {"text": "ppl=+0.5%"}, "held_out": reached}
    record = {"calibrated": [entry], "held_out": {"window_alone": {"perplexity_increase": 0.1}}, "v_skip": []}
    kept = 1 - math.log(1.01) / math.log(1.1)
    table = goal_table(record)
    assert f"| ≥ 80% | {100 * kept:.1f} % |" in table
    assert "| 12× | 20.0× |" in table


def test_a_missing_text_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        calibration.main(["--text", str(tmp_path / "no.txt"), "--record", str(tmp_path)])
    assert left.value.code == 2
    assert "no.txt" in capsys.readouterr().err


def test_the_page_is_the_records() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, TABLES) == (page, [])
