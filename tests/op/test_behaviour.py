"""What the op promises beside its results: in place, concurrent, per instruction set, counts, NaN."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from support.delta_feeds import HEADS, delta_feeds
from support.instruction_sets import vector_sets
from support.op_session import delta_attention_model, run_delta_attention, session

from deltallm_onnx.reference import delta_attention

RULES: dict[str, dict[str, Any]] = {
    "element": {"granularity": "element", "delta_window": 5, "sinks": 2},
    "row": {"granularity": "row", "delta_window": 3, "refresh": 7},
    "row absolute, exact prefill": {"granularity": "row", "row_rule": "absolute", "prefill": "exact", "sinks": 1},
    "v_skip": {"granularity": "row", "delta_window": 4, "v_skip": 0.05},
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("shape", [(1, 40), (70, 60), (1, 700), (130, 0)], ids=str)
@pytest.mark.parametrize("cache", ["float32", "float16"])
def test_agrees_with_the_oracle_on_every_instruction_set(rules: str, shape: tuple[int, int], cache: str) -> None:
    new_tokens, past = shape
    rng = np.random.default_rng(11)
    feeds = delta_feeds(rng, new_tokens=new_tokens, past=past, head_size=20, cache=cache, padding=3, threshold=0.9)
    attributes = {**HEADS, **RULES[rules]}
    expected = delta_attention(**feeds, **attributes, cache_format=cache)
    for isa in ("scalar", *vector_sets()):
        found = run_delta_attention(feeds, isa=isa, **attributes)
        # v_skip may skip less than the oracle: it compares with the largest probability so far. Left-out values weigh
        # at most n·ε·max|v| together, and no more than the sum of their probabilities.
        tolerance = 2e-5 if "v_skip" not in attributes else 4 * attributes["v_skip"]
        np.testing.assert_allclose(found[0], expected[0], rtol=tolerance, atol=tolerance, err_msg=isa)
        for which in (1, 2):
            np.testing.assert_array_equal(found[which], expected[which], err_msg=isa)
        columns = [0, 1, 2, 3, 4, 6, 7] if "v_skip" in attributes else list(range(8))
        np.testing.assert_array_equal(found[3][:, columns], expected[3][:, columns], err_msg=isa)


def bound(running: ort.InferenceSession, feeds: dict[str, Any], *, in_place: bool) -> list[Any]:
    binding = running.io_binding()
    for name, array in feeds.items():
        if not name.startswith("past_"):
            binding.bind_cpu_input(name, array)
    values = {}
    for part in ("key", "value"):
        past = ort.OrtValue.ortvalue_from_numpy(feeds[f"past_{part}"].copy())
        binding.bind_ortvalue_input(f"past_{part}", past)
        present = past if in_place else ort.OrtValue.ortvalue_from_numpy(np.empty_like(feeds[f"past_{part}"]))
        binding.bind_ortvalue_output(f"present_{part}", present)
        values[part] = present
    binding.bind_output("output")
    binding.bind_output("statistics")
    running.run_with_iobinding(binding)
    output, statistics = binding.copy_outputs_to_cpu()[2:]
    # ONNX Runtime hands out views of memory that goes with the binding.
    return [np.array(x) for x in (output, values["key"].numpy(), values["value"].numpy(), statistics)]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("new_tokens", [1, 6])
def test_in_place_equals_copied(rules: str, new_tokens: int) -> None:
    capacity, length = 30, 24
    feeds = delta_feeds(np.random.default_rng(3), new_tokens=new_tokens, past=capacity, threshold=6.0)
    del feeds["attention_mask"]
    feeds["seqlens_k"] = np.array([length - 1, length - 4], np.int32)
    feeds["total_sequence_length"] = np.array([length], np.int32)
    running = session(delta_attention_model(feeds, **HEADS, **RULES[rules]))
    shared = bound(running, feeds, in_place=True)
    copied = bound(running, feeds, in_place=False)
    np.testing.assert_array_equal(shared[0], copied[0])
    np.testing.assert_array_equal(shared[3], copied[3])
    for which, part in ((1, "key"), (2, "value")):
        for row, rows in enumerate((length, length - 3)):
            np.testing.assert_array_equal(shared[which][row, :, :rows], copied[which][row, :, :rows])
            np.testing.assert_array_equal(shared[which][row, :, rows:], feeds[f"past_{part}"][row, :, rows:])
    assert shared[3][:, 1].sum() > 0, "nothing was held: the comparison says little"


def test_concurrent_runs_of_one_session_agree() -> None:
    attributes = {**HEADS, **RULES["element"]}
    calls = [delta_feeds(np.random.default_rng(seed), new_tokens=1 + 9 * (seed % 2), past=600) for seed in range(8)]
    running = session(delta_attention_model(calls[0], **attributes))
    alone = [running.run(None, feeds) for feeds in calls]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            together = list(pool.map(lambda feeds: running.run(None, feeds), calls))
            for first, second in zip(alone, together, strict=True):
                for a, b in zip(first, second, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_a_nan_key_is_never_held_and_stays_in_its_own_row() -> None:
    feeds = delta_feeds(np.random.default_rng(4), new_tokens=6, past=0, threshold=1e30)
    feeds["key"][0, 3, 2] = np.nan
    for granularity in ("element", "row"):
        _, key, _, statistics = run_delta_attention(feeds, **HEADS, granularity=granularity, row_rule="absolute")
        rows = key[0, 0]
        assert np.isnan(rows[3, 2])
        # Every other row repeats the one before; a row after the NaN cannot be compared with it and is transmitted.
        np.testing.assert_array_equal(rows[1:3], rows[[0, 0]])
        assert rows[4, 2] == feeds["key"][0, 4, 2]
        held = statistics[:, 1] / statistics[:, 0]
        assert held[0] < held[1] <= 1


def test_counts_grow_with_the_threshold_and_never_exceed_their_totals() -> None:
    previous = -1
    for threshold in (0.0, 0.5, 1.0, 2.0, 10.0):
        feeds = delta_feeds(np.random.default_rng(5), new_tokens=40, past=0, threshold=threshold)
        counts = run_delta_attention(feeds, **HEADS, delta_window=8, sinks=2)[3]
        assert (counts[:, 0] == 2 * (40 - 8 - 2) * 12).all()
        assert (counts[:, 1] <= counts[:, 0]).all()
        assert (counts[:, 3] <= counts[:, 2]).all()
        assert counts[:, 1].sum() > previous
        previous = counts[:, 1].sum()


def test_v_skip_leaves_out_what_it_counts() -> None:
    """One key carries almost all the weight: every other value may go, and the output hardly moves."""
    feeds = delta_feeds(np.random.default_rng(6), batch=1, new_tokens=1, past=400)
    feeds["past_key"][:, :, 17] = 3 * feeds["query"][0, 0, :12]
    dense = run_delta_attention(feeds, **HEADS, delta_window=500)
    skipped = run_delta_attention(feeds, **HEADS, delta_window=500, v_skip=1e-3)
    left_out = skipped[3][:, 5] // 12
    assert (left_out > 0).all()
    assert (left_out < 3 * 401).all()
    largest = np.abs(feeds["past_value"]).max()
    assert np.abs(skipped[0] - dense[0]).max() <= 401 * 1e-3 * largest
    assert not np.array_equal(skipped[0], dense[0])
