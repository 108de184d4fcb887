"""What the one-layer benchmark writes down."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from bench.attention import measure, record_path, relative_error, rows, table
from bench.contenders import PEERS, Contender, delta
from bench.geometry import Geometry
from bench.layer import Layer, Setting
from bench.roofline import Work, machine_rates, work_of

GEOMETRY = Geometry("toy", 6, 2, 32)
RATES = {"1": {"read_bytes": 1e9, "float32_operations": 2e9, "bfloat16_operations": 4e9, "int8_operations": None}}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    setting = Setting(90, 1, 4, 1)
    unknown = Contender("no such operator", ("com.microsoft", "NoSuchOperator"), "float32")
    taking_part = [(c.name, c, setting) for c in (*PEERS[:2], delta("float32"), delta("float16"), unknown)]
    measured = measure(taking_part, GEOMETRY, seconds=0, ring_bytes=1 << 16, rates=RATES)
    again: dict[str, Any] = json.loads(json.dumps(measured))
    return again


def test_the_setting_and_the_clock_stand_in_the_result(result: dict[str, Any]) -> None:
    assert (result["past_tokens"], result["new_tokens"], result["threads"]) == (90, 1, 1)
    assert result["clock"] == "thread CPU time"
    assert result["rounds"] >= 5
    assert {"load_before", "load_after"} <= result.keys()


def test_who_cannot_run_is_named_with_the_reason(result: dict[str, Any]) -> None:
    assert list(result["unavailable"]) == ["no such operator"]
    assert "NoSuchOperator" in result["unavailable"]["no such operator"]
    assert [row["name"] for row in result["contenders"]] == ["GQA float32", "GQA int8", "ours float32", "ours float16"]


def test_every_row_has_its_time_its_bound_and_its_ratios(result: dict[str, Any]) -> None:
    for row in result["contenders"]:
        own = row["microseconds"]
        assert 0 < own["lower"] <= own["median"] <= own["upper"]
        assert row["cache_mode"] == "updated in place"
        assert row["fastest_peer"] in ("GQA float32", "GQA int8")
        assert row["name"] not in row["speedups"]
        if row["name"].startswith("ours "):
            assert set(row["speedups"]) == {"GQA float32", row["fastest_peer"]}
            assert all(0 < ratio["lower"] <= ratio["median"] <= ratio["upper"] for ratio in row["speedups"].values())
        assert row["share_of_roofline"] == pytest.approx(row["least_microseconds"] / own["median"], rel=0.05, abs=2e-3)


def test_float32_contenders_have_the_bytes_and_operations_of_dense_attention(result: dict[str, Any]) -> None:
    # 91 visible tokens of keys and values; QK and PV each two operations per query head and channel.
    found = {row["name"]: row for row in result["contenders"]}
    assert found["GQA float32"]["bytes"] == 2 * 2 * 32 * 4 * 91
    assert found["GQA float32"]["operations"] == 2 * 2 * 6 * 32 * 91
    assert found["ours float32"]["bytes"] == pytest.approx(2 * 2 * 32 * 4 * 91, rel=1e-9)
    assert found["ours float32"]["operations"] == 2 * 2 * 6 * 32 * 91
    assert found["ours float16"]["bytes"] == pytest.approx(2 * 2 * 32 * 2 * 91, rel=1e-9)


def test_errors_are_those_of_the_formats(result: dict[str, Any]) -> None:
    found = {row["name"]: row["relative_error"] for row in result["contenders"]}
    assert found["GQA float32"] == 0
    assert found["ours float32"] < 2e-6
    assert 2e-5 < found["ours float16"] < 1e-3
    assert found["GQA int8"] > found["ours float16"]


def test_the_relative_error_is_that_of_the_whole_output() -> None:
    exact = np.array([[3.0, 0.0, 4.0]], np.float32)
    probes = {"GQA float32": (exact, None)}
    assert relative_error(exact + np.array([0.0, 0.5, 0.0], np.float32), probes) == pytest.approx(0.1)
    assert relative_error(exact, {}) is None


def test_ratios_say_how_many_times_faster_not_slower() -> None:
    setting = Setting(90, 1, 4, 1)
    layers = {c.name: Layer(c, GEOMETRY, setting, ring_bytes=1) for c in (PEERS[0], delta("float32"))}
    (peer, own) = rows(layers, {"GQA float32": [6.0, 8.0, 9.0], "ours float32": [2.0, 2.0, 2.0]}, None)
    assert own["speedups"]["GQA float32"]["median"] == 4.0
    assert own["microseconds"]["median"] == 2e6
    assert peer["speedups"] == {}
    assert own["least_microseconds"] is own["share_of_roofline"] is None


def test_the_table_shows_every_contender(result: dict[str, Any]) -> None:
    assert table(result).row_count == 4


def test_a_forced_instruction_set_is_part_of_the_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTALLM_ISA", raising=False)
    assert record_path(tmp_path, "decode", GEOMETRY).name == "attention-decode-toy.json"
    monkeypatch.setenv("DELTALLM_ISA", "avx2")
    assert record_path(tmp_path, "decode", GEOMETRY).name == "attention-decode-toy-avx2.json"


def test_the_least_time_is_the_larger_bound() -> None:
    rates = RATES["1"]
    assert Work(3e9, (2e9, 1e9)).least_seconds(rates, ("float32", "float32")) == 3.0
    assert Work(1e9, (6e9, 4e9)).least_seconds(rates, ("float32", "bfloat16")) == 4.0
    assert Work(1e9, (6e9, 4e9)).least_seconds(rates, ("int8", "float32")) is None


def test_a_prompt_counts_causal_pairs_and_its_own_tensors() -> None:
    past, new = 11, 7
    work = work_of(Layer(PEERS[0], GEOMETRY, Setting(past, new, 1, 1), ring_bytes=1), None)
    pairs = sum(past + i + 1 for i in range(new))
    assert work.operations == (2 * 6 * 32 * pairs,) * 2
    assert work.bytes == 2 * 2 * 32 * 4 * (past + new) + 4 * new * 32 * (6 + 2 + 2 + 6)


def test_the_machine_is_measured() -> None:
    rates = machine_rates([1])
    assert rates is not None
    (found,) = rates.values()
    assert list(found) == ["read_bytes", "float32_operations", "bfloat16_operations", "int8_operations"]
    assert all(rate is None or rate > 1e8 for rate in found.values())
    assert found["read_bytes"] is not None
    assert found["float32_operations"] is not None
