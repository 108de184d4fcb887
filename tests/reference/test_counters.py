"""Raw counts against counting by hand, and the named counters made of them."""

from typing import Any

import numpy as np
import pytest

from deltallm_onnx.counters import COLUMNS, Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import STATISTICS_COLUMNS, delta_attention

# One KV head, two query heads, D = 2, five tokens.
KEYS = np.array([[0, 0], [0.25, 1], [0.25, 1], [2, 1], [2, 3]], np.float32)[None]


def counts(setting: dict[str, Any], keys: np.ndarray = KEYS, **inputs: np.ndarray) -> dict[str, int]:
    S = keys.shape[1]
    query = np.random.default_rng(1).normal(size=(1, S, 4)).astype(np.float32)
    *_, statistics = delta_attention(query, keys, keys, num_heads=2, kv_num_heads=1, **setting, **inputs)
    return dict(zip(STATISTICS_COLUMNS, statistics[0].tolist(), strict=True))


ELEMENT = {"granularity": "element", "threshold": 0.5, "delta_window": 1, "sinks": 1}
ROW = {"granularity": "row", "row_rule": "absolute", "threshold": 0.5, "delta_window": 1, "sinks": 1}


def test_prompt_with_element_granularity() -> None:
    # k̂ is (0,0) sink, (0,1), (0,1), (2,1); row 4 is in the window. Zeros of Δ: one, two, one.
    # Queries 2, 3, 4 read rows 1 … i − 1 as k̂: row 1 three times, row 2 twice, row 3 once.
    assert counts(ELEMENT) == {
        "delta_total": 3 * 2,
        "delta_zero": 1 + 2 + 1,
        "qk_macs_dense": 2 * 2 * (1 + 2 + 3 + 4 + 5),
        "qk_macs_skipped": 2 * (3 * 1 + 2 * 2 + 1 * 1),
        "pv_macs_dense": 2 * 2 * 15,
        "pv_macs_skipped": 0,
        "kv_bytes": 5 * 2 * 2 * 4,
        "kv_bytes_read": 5 * 2 * 2 * 4,
    }


def test_prompt_with_row_granularity() -> None:
    # ‖(0.25, 1)‖ > 0.5: row 1 is transmitted; row 2 repeats it; row 3 moves by 1.75. Row 2 is read as k̂ twice.
    got = counts(ROW)
    assert (got["delta_total"], got["delta_zero"]) == (3, 1)
    assert got["qk_macs_skipped"] == got["pv_macs_skipped"] == 2 * (2 * 2)


def test_exact_prefill_skips_nothing_and_codes_the_same() -> None:
    exact, delta = (counts({**ELEMENT, "prefill": prefill}) for prefill in ("exact", "delta"))
    assert exact["qk_macs_skipped"] == 0
    assert {k: v for k, v in exact.items() if k != "qk_macs_skipped"} == {
        k: v for k, v in delta.items() if k != "qk_macs_skipped"
    }


def test_padding_and_the_local_window_are_not_counted() -> None:
    pad = np.full((1, 2, 2), np.nan, np.float32)
    padded = counts(ELEMENT, np.concatenate([pad, KEYS], axis=1), attention_mask=np.array([[0, 0, 1, 1, 1, 1, 1]]))
    assert padded == counts(ELEMENT)
    local = counts({**ELEMENT, "local_window_size": 2})
    # Each query sees itself and one key before it, and only the one before it can be read as k̂.
    assert local["qk_macs_dense"] == 2 * 2 * (1 + 2 + 2 + 2 + 2)
    assert local["qk_macs_skipped"] == 2 * (1 + 2 + 1)
    assert local["kv_bytes_read"] == 5 * 16


def test_a_repeating_keyframe_counts_as_held_and_the_first_token_does_not() -> None:
    same = np.ones((1, 4, 2), np.float32)
    got = counts({**ROW, "sinks": 0, "delta_window": 0, "refresh": 2}, same)
    assert (got["delta_total"], got["delta_zero"]) == (4, 3)


def test_decode_reads_only_what_it_sees_and_float16_halves_the_bytes() -> None:
    past = np.zeros((1, 1, 6, 2), np.float16)
    setting = {**ELEMENT, "cache_format": "float16", "local_window_size": 4}
    got = counts(setting, KEYS[:, :1], past_key=past, past_value=past)
    assert got["kv_bytes"] == 7 * 2 * 2 * 2
    assert got["kv_bytes_read"] == 4 * 2 * 2 * 2


def test_a_value_in_a_run_is_not_counted_twice() -> None:
    # Nine equal keys give every value the same probability; a tenth takes nearly all of it.
    keys = np.concatenate([np.zeros((1, 9, 2)), np.full((1, 1, 2), 30.0)], axis=1).astype(np.float32)
    query = np.ones((1, 10, 4), np.float32)
    setting = {**ROW, "sinks": 0, "num_heads": 2, "kv_num_heads": 1}
    *_, without = delta_attention(query, keys, keys, **setting)
    *_, with_skip = delta_attention(query, keys, keys, **setting, v_skip=0.5)
    # Query 9 leaves out rows 0 to 8 of both heads; rows 1 to 8 are held already.
    assert with_skip[0, 5] - without[0, 5] == 2 * 2 * 1


def statistics(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def test_counters_are_plain_ratios_of_sums() -> None:
    # Two layers with different numbers of KV heads, so that a mean of ratios would differ.
    layers = [
        statistics([10, 5, 100, 20, 100, 10, 64, 32], [10, 1, 100, 0, 100, 0, 64, 32]),
        statistics([80, 60, 300, 90, 300, 60, 96, 48]),
    ]
    prompt = Counters.from_statistics(layers, cached_tokens=7)
    assert prompt.delta_sparsity == 66 / 100
    assert prompt.qk_mac_sparsity == 110 / 500
    assert prompt.attn_mac_sparsity == 180 / 1000
    assert prompt.kv_bytes_per_token == (64 + 64 + 96) / (7 * 2)
    assert prompt.kv_bytes_read == 0, "a prompt decodes nothing"

    step = Counters.from_statistics([statistics([1, 1, 10, 9, 10, 0, 70, 50])] * 2, cached_tokens=8, decoded_tokens=1)
    total = Counters() + prompt + step + step
    assert total.delta_sparsity == (66 + 4) / (100 + 4)
    assert total.kv_bytes_per_token == 140 / (8 * 2), "what is in use is told by the latest call"
    assert total.kv_bytes_read == 100
    assert total + Counters() == total
    assert list(total.to_dict()) == [
        "delta_sparsity",
        "qk_mac_sparsity",
        "attn_mac_sparsity",
        "kv_bytes_per_token",
        "kv_bytes_read",
    ]


def test_nothing_counted_is_zero() -> None:
    assert set(Counters().to_dict().values()) == {0.0}


def test_columns_agree_with_the_oracle() -> None:
    assert len(STATISTICS_COLUMNS) == COLUMNS


@pytest.mark.parametrize("bad", [np.zeros((2, 7), np.int64), np.zeros((2, 8), np.int32), np.zeros(8, np.int64)])
def test_other_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(DeltaLLMError, match="layer 1"):
        Counters.from_statistics([statistics([0] * 8), bad], cached_tokens=1)
