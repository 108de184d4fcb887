"""Packed caches against the float caches' oracle, and what the format promises: chunks, merging, sealing, rewinds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.packed_cases import PackedCase, assert_same_bytes, run_oracle, token_by_token

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import delta_attention, hybrid_window_attention
from deltallm_onnx.reference.packed import PackedCache
from deltallm_onnx.reference.packed_cache import LONGEST_RUN, REPEATS, CacheRows
from deltallm_onnx.reference.packed_rows import Row, round_row

CASES = {
    "merging": PackedCase(tokens=70, starts=(0, 5)),
    "element": PackedCase(tokens=70, granularity="element", theta=0.3, starts=(3,)),
    "local window": PackedCase(tokens=60, local_window=23, starts=(0, 5)),
    "bias": PackedCase(tokens=40, bias=True, head_sink=True, softcap=3.0),
    "keyframes and weights": PackedCase(tokens=80, refresh=7, row_weight=True, theta=0.7),
    "no window": PackedCase(tokens=40, window=0, sinks=9),
    "no sinks": PackedCase(tokens=50, window=8, sinks=0, row_rule="absolute", theta=1.5),
}


def opened(case: PackedCase, key: np.ndarray, value: np.ndarray, tokens: int) -> PackedCache:
    """The cache of batch row 0 and KV head 0."""
    return PackedCache(key[0, 0].copy(), value[0, 0].copy(), case.layout, case.rules(0), tokens)


def rounded(x: np.ndarray, head_size: int) -> np.ndarray:
    """R8 of every head of [B, T, H·D]."""
    rows = x.reshape(-1, head_size)
    return np.stack([round_row(row).decoded() for row in rows]).reshape(x.shape)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.granularity == "row"])
def test_int8_is_the_float_oracle_on_rounded_rows(name: str) -> None:
    """Decoding token by token: R8 rows in a float32 cache, coded by docs/spec.md, give what the packed cache gives."""
    case = CASES[name]
    packed = run_oracle(case, token_by_token(case))
    attributes = {**case.attributes, "cache_format": "float32"}
    past: dict[str, np.ndarray] = {}
    counts = []
    for t in range(case.tokens):
        feeds = case.feeds(t, t + 1)
        for part in ("key", "value"):
            feeds[part] = rounded(feeds[part], case.head_size)
        output, past["past_key"], past["past_value"], statistics = delta_attention(**feeds, **past, **attributes)
        counts.append(statistics)
        # The mean of a run that has ended is rounded once more: half a step of max|v| / 127. Nothing else differs.
        bound = np.abs(case.sequence()["value"]).max() / 254 if case.merges else 0
        np.testing.assert_allclose(packed.output[:, t : t + 1], output, rtol=0, atol=bound + 1e-6, err_msg=f"token {t}")
    total = np.sum(counts, axis=0)
    np.testing.assert_array_equal(np.sum(packed.statistics, axis=0)[:, :6], total[:, :6])
    assert 0 < total[0, 1] < total[0, 0], "the case was to hold some tokens and not others"


def test_element_keys_are_held_against_what_is_stored() -> None:
    case = CASES["element"].replace(kv_heads=1, starts=(0,), refresh=9)
    run = run_oracle(case, token_by_token(case))
    key, value = (rounded(case.sequence()[part], case.head_size) for part in ("key", "value"))
    held = key[0].copy()
    for t in range(case.sinks, case.tokens - case.window):
        small = np.abs(key[0, t] - held[t - 1]) <= case.threshold[0]
        kept = np.where(small & (t % 9 != 0), held[t - 1], key[0, t])
        held[t] = round_row(kept).decoded()
    rows = opened(case, run.key, run.value, case.tokens).rows()
    np.testing.assert_array_equal(rows.keys, held)
    np.testing.assert_array_equal(rows.values, value[0])
    expected = hybrid_window_attention(
        case.sequence()["query"][:, -1:].reshape(1, 1, case.group, case.head_size).transpose(0, 2, 1, 3),
        key[:, None],
        held[None, None],
        value[:, None],
        past_length=np.array([case.tokens - 1]),
        start=np.array([0]),
        length=np.array([case.tokens]),
        delta_window=case.window,
        sinks=case.sinks,
    )
    np.testing.assert_allclose(run.output[0, -1], expected.reshape(-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("name", CASES)
def test_how_tokens_are_split_changes_no_byte_and_no_output(name: str, cache_format: str) -> None:
    case = CASES[name].replace(cache_format=cache_format, sinks=CASES[name].sinks, spare=3)
    if cache_format == "int4":
        case = case.replace(tokens=case.tokens + 130, kv_heads=1, group=2, theta=case.theta / 4)
    whole = run_oracle(case, [case.tokens])
    chunks = [17, 1, 1, 6, case.tokens - 25]
    for split in (chunks, token_by_token(case)):
        parts = run_oracle(case, split)
        assert_same_bytes(case, parts, whole)
        np.testing.assert_allclose(parts.output, whole.output, rtol=1e-6, atol=1e-6)
        # Bytes in use, rows seen and pairs aside, the counts add up.
        np.testing.assert_array_equal(np.sum(parts.statistics, axis=0)[:, :6], whole.statistics[0][:, :6])
        np.testing.assert_array_equal(parts.statistics[-1][:, 6], whole.statistics[0][:, 6])


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_prefill_exact_leaves_the_same_cache_and_reads_new_rows_unrounded(cache_format: str) -> None:
    case = PackedCase(cache_format=cache_format, tokens=90, theta=1.0)
    exact, delta = (run_oracle(case.replace(prefill=kind), [90]) for kind in ("exact", "delta"))
    assert_same_bytes(case, exact, delta)
    attributes = {**case.attributes, "cache_format": "float32", "prefill": "exact", "threshold": 0.0}
    dense, *_ = delta_attention(**{**case.feeds(0, 90), **attributes})
    np.testing.assert_allclose(exact.output, dense, rtol=1e-6, atol=1e-6)
    assert np.abs(delta.output - dense).max() > 1e-2


def test_threshold_zero_keeps_every_rounded_row() -> None:
    case = PackedCase(theta=0.0, local_window=1000, tokens=50)
    run = run_oracle(case, [50])
    rows = opened(case, run.key, run.value, 50).rows()
    sequence = case.sequence()
    for part, found in (("key", rows.keys), ("value", rows.values)):
        D = case.head_size
        expected = np.stack([round_row(x).decoded() for x in sequence[part][0, :, :D]])
        np.testing.assert_array_equal(found, expected)


def test_a_run_is_one_row_with_the_mean_of_its_values() -> None:
    case = PackedCase(theta=1e6, row_rule="absolute", tokens=60, kv_heads=1)
    run = run_oracle(case, [60])
    rows = opened(case, run.key, run.value, 60).rows()
    coded = 60 - case.window - case.sinks
    # The first coded token is held against a sink, which nothing may join.
    np.testing.assert_array_equal(rows.tokens, [1] * case.sinks + [coded] + [1] * case.window)
    np.testing.assert_array_equal(rows.spared[rows.coded], [coded])
    values = rounded(case.sequence()["value"], case.head_size)[0, case.sinks : case.sinks + coded]
    # Each of the updates rounds the mean to 16 bits: half a step of about max|v| / 127 / 254.
    bound = coded * np.abs(values).max() / 127 / 254
    np.testing.assert_allclose(rows.values[rows.coded][0], values.mean(axis=0), atol=bound, rtol=0)
    assert bound < 0.01


def test_a_full_run_is_followed_by_a_row_that_repeats_its_key() -> None:
    case = PackedCase(theta=1e6, row_rule="absolute", kv_heads=1, window=8, sinks=0, spare=60)
    run = run_oracle(case, [case.tokens])
    cache = opened(case, run.key, run.value, case.tokens)
    slot = cache.layout.exact
    assert cache.key.read_tag(slot) == case.tokens - 8
    cache.key.write_tag(slot, LONGEST_RUN)
    key = np.ones(case.head_size, np.float32)
    for _ in range(3):
        cache.append(key, key)
    assert [cache.key.read_tag(slot), cache.key.read_tag(slot + 1)] == [LONGEST_RUN, REPEATS | 3]
    np.testing.assert_array_equal(cache.key.read(slot).codes, cache.key.read(slot + 1).codes)


@pytest.mark.parametrize("granularity", ["row", "element"])
def test_sealed_rows_lie_within_half_a_step_of_their_8_bit_form(granularity: str) -> None:
    case = PackedCase(tokens=410, kv_heads=1, group=1, granularity=granularity, theta=0.1, local_window=500)
    int8 = run_oracle(case, [410])
    case4 = case.replace(cache_format="int4")
    int4 = run_oracle(case4, [410])
    exact, sealed = opened(case, int8.key, int8.value, 410).rows(), opened(case4, int4.key, int4.value, 410).rows()
    for field in ("tokens", "first_token", "coded", "spared"):
        np.testing.assert_array_equal(getattr(exact, field), getattr(sealed, field))
    blocks = (410 - 11 - 1) // 128
    assert blocks == 3
    for block in range(blocks):
        span = slice(2 + 128 * block, 2 + 128 * (block + 1))
        for have, want, axis in ((sealed.keys, exact.keys, 0), (sealed.values, exact.values, 1)):
            group = want[span]
            step = (group.max(axis=axis) - group.min(axis=axis)) / 15
            # The zero and the scale have eleven bits; the scale's error counts fifteen times.
            bound = 0.5 * step + 16 * 2.0**-11 * (step + np.abs(group).max(axis=axis) / 15)
            assert (np.abs(have[span] - group) <= np.expand_dims(bound, axis)).all()
    for rows in (slice(0, 2), slice(2 + 128 * blocks, None)):
        np.testing.assert_array_equal(sealed.keys[rows], exact.keys[rows])
        np.testing.assert_array_equal(sealed.values[rows], exact.values[rows])


def cut(case: PackedCase, length: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Run a whole sequence, then bring its last tokens again behind the first `kept`; the presents after that."""
    whole = run_oracle(case, [case.tokens])
    feeds = case.feeds(kept, case.tokens)
    _, key, value, _ = delta_attention(**feeds, past_key=whole.key, past_value=whole.value, **case.attributes)
    assert length == case.tokens
    return key, value


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_a_rewind_within_the_window_leaves_what_a_fresh_run_leaves(cache_format: str) -> None:
    case = PackedCase(cache_format=cache_format, tokens=150, kv_heads=1, theta=0.3, spare=0)
    fresh = run_oracle(case, [150])
    for dropped in (1, case.window):
        key, value = cut(case, 150, 150 - dropped)
        assert_same_bytes(case, dataclasses.replace(fresh, key=key, value=value), fresh)


def test_rows_of_a_rewind_within_the_window_are_read_as_coded() -> None:
    case = PackedCase(tokens=40, kv_heads=1, theta=1.0)
    run = run_oracle(case, [40])
    rows = opened(case, run.key, run.value, 40 - 4).rows()
    assert rows.tokens.sum() == 36
    assert rows.tokens[rows.coded].sum() == 40 - 11, "as many as before the rewind"


@pytest.mark.parametrize(("cache_format", "kept"), [("int8", 25), ("int8", 1), ("int4", 25), ("int4", 141)])
def test_a_rewind_of_coded_rows_equals_a_fresh_run(cache_format: str, kept: int) -> None:
    """Bytes after the sequence was brought again; where one block is sealed, as long as a row behind it stays."""
    tokens = 60 if kept < 130 else 190
    case = PackedCase(cache_format=cache_format, tokens=tokens, kv_heads=1, local_window=400, theta=0.5, spare=0)
    fresh = run_oracle(case, [tokens])
    key, value = cut(case, tokens, kept)
    assert_same_bytes(case, dataclasses.replace(fresh, key=key, value=value), fresh)


@pytest.mark.parametrize(
    ("changes", "tokens", "kept", "sentence"),
    [
        ({}, 60, 40, "cut to 40 tokens, but 49 tokens behind the sinks are coded and runs cannot be undone"),
        ({"cache_format": "int4", "local_window": 400}, 190, 130, "within a sealed int4 block"),
    ],
)
def test_a_rewind_that_cannot_be_undone_is_refused(
    changes: dict[str, Any], tokens: int, kept: int, sentence: str
) -> None:
    case = PackedCase(tokens=tokens, kv_heads=1, theta=0.4, spare=0).replace(**changes)
    with pytest.raises(DeltaLLMError, match=sentence):
        cut(case, tokens, kept)


@pytest.mark.parametrize(("slot", "tag"), [(0, 0), (0, 0xD401), (1, 7), (2, 1), (3, 48), (4, 1), (5, 3)], ids=str)
def test_a_header_that_cannot_be_right_is_refused(slot: int, tag: int) -> None:
    case = PackedCase(tokens=60, kv_heads=1, local_window=100)
    run = run_oracle(case, [60])
    cache = opened(case, run.key, run.value, 60)
    cache.value.write_tag(slot, tag)
    value = cache.value._bytes.reshape(run.value.shape)
    with pytest.raises(DeltaLLMError, match="give the present of a call of this model"):
        opened(case, run.key, value, 60)


def test_a_past_of_another_model_or_cut_short_is_refused() -> None:
    case = PackedCase(tokens=60, kv_heads=1, local_window=100)
    run = run_oracle(case, [60])
    with pytest.raises(DeltaLLMError, match="2 sinks and a window of 10 tokens"):
        opened(case.replace(window=10), run.key, run.value, 60)
    with pytest.raises(DeltaLLMError, match="49 coded tokens in 49 rows, which a past of 60 tokens in 59 rows cannot"):
        opened(case, run.key[:, :, :59], run.value[:, :, :59], 60)
    with pytest.raises(DeltaLLMError, match="49 coded tokens"):
        opened(case, run.key, run.value, 61)


def test_a_slab_too_small_for_its_header_holds_what_fits() -> None:
    case = PackedCase(tokens=7, kv_heads=1, window=7, sinks=2)
    grown, whole = run_oracle(case, token_by_token(case)), run_oracle(case, [7])
    assert_same_bytes(case, grown, whole)
    np.testing.assert_array_equal(grown.output, whole.output)


def test_nan_stays_in_its_own_row_until_it_is_averaged() -> None:
    case = PackedCase(theta=0.2, kv_heads=1, tokens=30, local_window=50)
    feeds = case.feeds(0, 30)
    feeds["key"][0, 11, 3] = np.nan
    _, key, value, _ = delta_attention(**feeds, **case.attributes)
    rows = opened(case, key, value, 30).rows()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(rows.keys).any(axis=1)), [11])
    assert np.isfinite(rows.values).all()


def test_counts_of_a_small_sequence_by_hand() -> None:
    """8 exact slots; tokens of equal keys but one that differs: 4 coded rows or 2 runs."""
    head_size, tokens = 5, 14
    key = np.ones((1, tokens, head_size), np.float32)
    key[0, 3] = 9
    rng = np.random.default_rng(0)
    feeds = {
        "query": rng.normal(0, 1, (1, tokens, 2 * head_size)).astype(np.float32),
        "key": key,
        "value": rng.normal(0, 1, (1, tokens, head_size)).astype(np.float32),
        "attention_mask": np.ones((1, tokens), np.int64),
    }
    attributes = {"num_heads": 2, "kv_num_heads": 1, "delta_window": 7, "sinks": 1, "threshold": 0.1}
    _, _, _, counts = delta_attention(**feeds, **attributes, granularity="row", cache_format="int8")
    # Coded: tokens 1 and 2 (held against the sink, then joined), 3 (differs), 4 (differs back), 5 and 6 join it.
    pairs = tokens * (tokens + 1) // 2
    # Query i reads tokens 1 … i − 7 as coded; of those 1, 2, 5 and 6 are held.
    held = sum(sum(1 <= j <= i - 7 for j in (1, 2, 5, 6)) for i in range(tokens))
    rows = 8 + 3
    expected = [6, 4, 2 * 5 * pairs, 2 * 5 * held, 2 * 5 * pairs, 2 * 5 * held, 2 * rows * 12, 2 * rows * 12]
    assert counts.tolist() == [expected]
    _, _, _, counts = delta_attention(**feeds, **attributes, granularity="element", cache_format="int8")
    rows = tokens
    expected = [6 * 5, 4 * 5, 10 * pairs, 10 * held, 10 * pairs, 0, 2 * rows * 12, 2 * rows * 12]
    assert counts.tolist() == [expected]


def test_a_value_left_out_is_counted_once_whether_held_or_not() -> None:
    """All coded tokens are far below the newest one: every product of theirs is spared, and none twice."""
    case = PackedCase(tokens=41, kv_heads=1, group=2, v_skip=0.5)
    past = run_oracle(case.replace(tokens=40), [40])
    feeds = case.feeds(40, 41)
    feeds["query"] = np.tile(200 * feeds["key"], (1, 1, case.group))
    rows = opened(case, past.key, past.value, 40).rows()
    assert (rows.keys @ feeds["key"][0, 0] < 0.9 * (feeds["key"] ** 2).sum()).all(), "the newest key was to win clearly"
    call = {**feeds, "past_key": past.key, "past_value": past.value, **case.attributes}
    _, _, _, counts = delta_attention(**call)
    D = case.head_size
    held = int(rows.spared.sum()) + int(counts[0, 1])
    assert 0 < held < 30
    assert counts[0, [3, 5]].tolist() == [2 * D * held, 2 * D * 40]


def test_the_oracle_refuses_what_the_operator_refuses() -> None:
    case = PackedCase(tokens=12, cache_format="int4")
    feeds = case.feeds(0, 12)
    del feeds["attention_mask"]
    with pytest.raises(DeltaLLMError, match="int4 needs one"):
        delta_attention(**feeds, **case.attributes)
    with pytest.raises(DeltaLLMError, match=r"sinks \+ delta_window is 7"):
        delta_attention(**case.feeds(0, 12), **{**case.attributes, "delta_window": 5})
    past = np.zeros((1, 2, 4, 20), np.uint8)
    with pytest.raises(DeltaLLMError, match=r"past_key has shape .* give \[1, 2, rows, 14\]"):
        delta_attention(**case.feeds(0, 12), past_key=past, past_value=past, **case.attributes)
    past = np.zeros((1, 2, 4, 14), np.int8)
    with pytest.raises(DeltaLLMError, match="past_key is int8: this cache_format is stored as uint8"):
        delta_attention(**case.feeds(0, 12), past_key=past, past_value=past, **case.attributes)


def test_rows_describe_themselves() -> None:
    row = Row(np.array([1, -2], np.int8), np.float16(0.5))
    assert row.tagged(3) == dataclasses.replace(row, tag=3)
    assert [field.name for field in dataclasses.fields(CacheRows)][:2] == ["keys", "values"]
