"""The operator's oracle against its definition over a whole sequence, written a second time and differently."""

from typing import Any

import numpy as np
import pytest
from support.random_cases import key_rows

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import delta_attention, hold, hybrid_window_attention, lineage_block_size

HQ, HKV, D = 6, 2, 7
SETTINGS = {
    "element": {"granularity": "element", "threshold": np.array([0.25, 0.5], np.float32)},
    "row": {"granularity": "row", "threshold": np.array([0.2, 0.4], np.float32)},
}


def tokens(seed: int, count: int, batch: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """query [B, T, Hq·D], key and value [B, T, Hkv·D]."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(batch, count, HQ * D)).astype(np.float32)
    key = key_rows(rng, (batch, HKV, count, D), grid=False).transpose(0, 2, 1, 3).reshape(batch, count, HKV * D)
    value = rng.normal(size=(batch, count, HKV * D)).astype(np.float32)
    return query, key, value


def heads(x: np.ndarray, count: int) -> np.ndarray:
    B, T, _ = x.shape
    return x.reshape(B, T, count, D).transpose(0, 2, 1, 3)


def by_definition(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    *,
    threshold: Any,
    granularity: str,
    delta_window: int,
    sinks: int,
    refresh: int = 0,
) -> np.ndarray:
    """Section 3 over a whole sequence: one loop per query and key, the softmax written out."""
    q, k, v = heads(query, HQ), heads(key, HKV), heads(value, HKV)
    k_hat = hold(k, threshold, granularity=granularity, sinks=sinks, refresh=refresh)
    T = q.shape[2]
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(HQ):
            kv = h // (HQ // HKV)
            for i in range(T):
                weights, total = np.zeros(D), 0.0
                for j in range(i + 1):
                    exact = j < sinks or j > i - delta_window
                    row = k[b, kv, j] if exact else k_hat[b, kv, j]
                    p = np.exp(np.dot(q[b, h, i].astype(float), row.astype(float)) / np.sqrt(D))
                    weights += p * v[b, kv, j]
                    total += p
                out[b, h, i] = weights / total
    return out.transpose(0, 2, 1, 3).reshape(query.shape)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("window", "sinks", "refresh"), [(0, 0, 0), (4, 1, 0), (3, 5, 6)])
def test_prompt_equals_the_definition(name: str, window: int, sinks: int, refresh: int) -> None:
    query, key, value = tokens(1, 19)
    setting = {**SETTINGS[name], "delta_window": window, "sinks": sinks, "refresh": refresh}
    out, present_key, present_value, _ = delta_attention(
        query, key, value, num_heads=HQ, kv_num_heads=HKV, prefill="delta", **setting
    )
    expected = by_definition(query, key, value, **setting)
    dense = by_definition(query, key, value, **{**setting, "threshold": 0.0})
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
    assert np.abs(expected - dense).max() > 1e-3, "the case must differ from dense attention"
    # The cache: coded behind the window, exact in it and in the sinks.
    k = heads(key, HKV)
    k_hat = hold(k, setting["threshold"], granularity=setting["granularity"], sinks=sinks, refresh=refresh)
    edge = max(sinks, 19 - window)
    np.testing.assert_array_equal(present_key[:, :, :edge], k_hat[:, :, :edge])
    np.testing.assert_array_equal(present_key[:, :, edge:], k[:, :, edge:])
    np.testing.assert_array_equal(present_value, heads(value, HKV))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("prefill", ["exact", "delta"])
@pytest.mark.parametrize("cache_format", ["float32", "float16"])
def test_chunks_leave_the_cache_of_one_call(name: str, prefill: str, cache_format: str) -> None:
    query, key, value = tokens(2, 23)
    setting = {**SETTINGS[name], "delta_window": 4, "sinks": 2, "refresh": 9, "prefill": prefill}
    setting |= {"num_heads": HQ, "kv_num_heads": HKV, "cache_format": cache_format}
    whole = delta_attention(query, key, value, **setting)
    for sizes in ([23], [1] * 23, [10, 1, 5, 7], [2, 21]):
        past, outputs, done = (None, None), [], 0
        for size in sizes:
            part = slice(done, done + size)
            out, *past, _ = delta_attention(query[:, part], key[:, part], value[:, part], *past, **setting)
            outputs.append(out)
            done += size
        np.testing.assert_array_equal(past[0], whole[1])
        np.testing.assert_array_equal(past[1], whole[2])
        if prefill == "delta":
            np.testing.assert_allclose(np.concatenate(outputs, axis=1), whole[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_exact_prefill_is_dense_and_its_next_step_is_not(name: str) -> None:
    query, key, value = tokens(3, 21)
    setting = {
        **SETTINGS[name],
        "delta_window": 2,
        "sinks": 1,
        "num_heads": HQ,
        "kv_num_heads": HKV,
        "prefill": "exact",
    }
    prompt, *past, _ = delta_attention(query[:, :20], key[:, :20], value[:, :20], **setting)
    dense = by_definition(query, key, value, threshold=0.0, granularity="element", delta_window=0, sinks=0)
    np.testing.assert_allclose(prompt, dense[:, :20], rtol=0, atol=1e-6)
    step, *_ = delta_attention(query[:, 20:], key[:, 20:], value[:, 20:], *past, **setting)
    held = by_definition(query, key, value, **SETTINGS[name], delta_window=2, sinks=1)
    np.testing.assert_allclose(step, held[:, 20:], rtol=0, atol=1e-6)
    assert np.abs(step - dense[:, 20:]).max() > 1e-3


@pytest.mark.parametrize("setting", [{"threshold": 0.0, "delta_window": 0}, {"threshold": 9.0, "delta_window": 18}])
def test_zero_threshold_or_a_window_over_everything_is_dense(setting: dict[str, float]) -> None:
    query, key, value = tokens(4, 17, batch=2)
    out, *_ = delta_attention(query, key, value, num_heads=HQ, kv_num_heads=HKV, **setting)
    dense = by_definition(query, key, value, threshold=0.0, granularity="element", delta_window=0, sinks=0)
    np.testing.assert_allclose(out, dense, rtol=0, atol=1e-6)


def test_left_padding_shifts_every_position() -> None:
    query, key, value = tokens(5, 16)
    setting = {**SETTINGS["row"], "delta_window": 3, "sinks": 2, "refresh": 5, "num_heads": HQ, "kv_num_heads": HKV}
    alone = delta_attention(query, key, value, **setting)
    pad = 4
    padded = [
        np.concatenate([np.full((1, pad, x.shape[2]), np.nan, np.float32), x], axis=1) for x in (query, key, value)
    ]
    mask = np.array([[0] * pad + [1] * 16], np.int64)
    out, present_key, _, counts = delta_attention(*padded, attention_mask=mask, **setting)
    np.testing.assert_allclose(out[:, pad:], alone[0], rtol=0, atol=1e-7)
    assert (out[:, :pad] == 0).all()
    np.testing.assert_array_equal(present_key[:, :, pad:], alone[1])
    np.testing.assert_array_equal(counts, alone[3])


def test_rows_of_different_length_equal_each_alone() -> None:
    query, key, value = tokens(6, 15, batch=2)
    setting = {**SETTINGS["element"], "delta_window": 2, "sinks": 1, "num_heads": HQ, "kv_num_heads": HKV}
    lengths = [15, 9]
    past = delta_attention(
        query, key, value, seqlens_k=np.array(lengths, np.int32) - 1, total_sequence_length=15, **setting
    )
    new = tokens(7, 1, batch=2)
    step = delta_attention(
        *new, past[1], past[2], seqlens_k=np.array(lengths, np.int32), total_sequence_length=16, **setting
    )
    for b, n in enumerate(lengths):
        one = slice(b, b + 1)
        alone = delta_attention(query[one, :n], key[one, :n], value[one, :n], **setting)
        np.testing.assert_allclose(past[0][one, :n], alone[0], rtol=0, atol=1e-7)
        next_step = delta_attention(*(x[one] for x in new), alone[1], alone[2], **setting)
        np.testing.assert_allclose(step[0][one], next_step[0], rtol=0, atol=1e-7)
        np.testing.assert_array_equal(step[1][one, :, : n + 1], next_step[1])


@pytest.mark.parametrize("name", SETTINGS)
def test_rewind_codes_nothing_twice_and_is_exact_inside_the_window(name: str) -> None:
    query, key, value = tokens(8, 20)
    setting = {**SETTINGS[name], "delta_window": 6, "sinks": 1, "num_heads": HQ, "kv_num_heads": HKV}
    _, past_key, past_value, _ = delta_attention(query, key, value, **setting)

    def again(length: int) -> tuple[np.ndarray, ...]:
        part = slice(length - 1, length)
        return delta_attention(
            query[:, part],
            key[:, part],
            value[:, part],
            past_key,
            past_value,
            seqlens_k=np.array([length - 1], np.int32),
            total_sequence_length=length,
            **setting,
        )

    _, shorter_key, shorter_value, _ = delta_attention(query[:, :15], key[:, :15], value[:, :15], **setting)
    inside = delta_attention(query[:, 15:16], key[:, 15:16], value[:, 15:16], shorter_key, shorter_value, **setting)
    rewound = again(16)
    np.testing.assert_array_equal(rewound[1][:, :, 14:16], inside[1][:, :, 14:16])
    np.testing.assert_array_equal(rewound[1][:, :, :14], past_key[:, :, :14])
    deep = again(9)
    np.testing.assert_array_equal(deep[1][:, :, :8], past_key[:, :, :8])


def test_value_skipping_leaves_out_what_is_small_and_keeps_the_denominator() -> None:
    query, key, value = tokens(9, 18)
    setting = {**SETTINGS["element"], "delta_window": 3, "num_heads": HQ, "kv_num_heads": HKV, "scale": 1.0}
    full, _, present_value, base = delta_attention(query, key, value, **setting)
    epsilon = 0.2
    part, _, _, counts = delta_attention(query, key, value, v_skip=epsilon, **setting)
    left_out = (counts[:, 5] - base[:, 5]) / D
    assert (left_out > 0).all()
    bound = 18 * epsilon * np.abs(present_value).max()
    assert 0 < np.abs(full - part).max() < bound
    # The sink takes probability from every key, but "small" is measured among the keys.
    sink = np.full(HQ, 20, np.float32)
    *_, with_sink = delta_attention(query, key, value, v_skip=epsilon, head_sink=sink, **setting)
    np.testing.assert_array_equal(with_sink, counts)
    # With ones as values the output is the kept share of the probability: 1 − Σ_{left out} p.
    ones = np.ones_like(value)
    share, *_ = delta_attention(query, key, ones, v_skip=epsilon, **setting)
    assert share.min() < 0.99
    assert share.max() <= 1 + 1e-6


def test_block_windows_reproduce_the_lineage() -> None:
    T = 23
    block = lineage_block_size(T * 4)
    assert block == 5
    query, key, value = tokens(10, T)
    setting = {**SETTINGS["element"], "num_heads": HQ, "kv_num_heads": HKV, "sinks": 1}
    out, present_key, _, _ = delta_attention(query, key, value, delta_window=block, window_kind="block", **setting)
    q, k, v = heads(query, HQ), heads(key, HKV), heads(value, HKV)
    k_hat = hold(k, setting["threshold"], sinks=1)
    for h in range(HQ):
        kv = h // (HQ // HKV)
        exact, held = q[0, h] @ k[0, kv].T, q[0, h] @ k_hat[0, kv].T
        same_block = np.kron(np.eye(5), np.ones((block, block)))[:T, :T].astype(bool)
        same_block[:, 0] = True
        scores = np.where(same_block, exact, held) / np.sqrt(D)
        p = np.tril(np.exp(scores))
        np.testing.assert_allclose(heads(out, HQ)[0, h], p / p.sum(1, keepdims=True) @ v[0, kv], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(present_key[:, :, :20], k_hat[:, :, :20])
    np.testing.assert_array_equal(present_key[:, :, 20:], k[:, :, 20:])


def test_a_query_that_sees_nothing_gives_zero_even_with_a_sink_and_bias() -> None:
    query, key, value = tokens(11, 5)
    bias = np.zeros((1, 1, 5, 5), np.float32)
    bias[0, 0, 3] = -np.inf
    setting = {"threshold": 0.25, "num_heads": HQ, "kv_num_heads": HKV, "attention_bias": bias}
    for head_sink in (None, np.linspace(-1, 1, HQ).astype(np.float32)):
        out, *_ = delta_attention(query, key, value, head_sink=head_sink, **setting)
        assert (out[:, 3] == 0).all()
        assert (out[:, [0, 1, 2, 4]] != 0).all()


def test_hybrid_window_attention_reads_neither_padding_nor_unused_rows() -> None:
    rng = np.random.default_rng(12)
    C, S = 11, 3
    query = rng.normal(size=(1, HQ, S, D)).astype(np.float32)
    key, held, value = (rng.normal(size=(1, HKV, C, D)).astype(np.float32) for _ in range(3))
    where = {"past_length": np.array([5]), "start": np.array([2]), "length": np.array([8])}
    clean = hybrid_window_attention(query, key, held, value, **where, delta_window=2, sinks=1)
    for x in (key, held, value):
        x[:, :, [0, 1, 8, 9, 10]] = np.nan
    np.testing.assert_array_equal(
        hybrid_window_attention(query, key, held, value, **where, delta_window=2, sinks=1), clean
    )


def refused(sentence: str, **changes: Any) -> None:
    query, key, value = tokens(13, 3, batch=2)
    arguments = {"query": query, "key": key, "value": value, "threshold": 0.5, "num_heads": HQ, "kv_num_heads": HKV}
    with pytest.raises(DeltaLLMError, match=sentence):
        delta_attention(**{**arguments, **changes})


def test_bad_arguments_are_refused_with_a_sentence() -> None:
    past = np.zeros((2, HKV, 4, D), np.float32)
    lengths = {"seqlens_k": np.array([2, 3], np.int32), "total_sequence_length": 5}
    refused("multiple of the second", num_heads=5)
    refused("delta_window is -1", delta_window=-1)
    refused("local_window_size is 0", local_window_size=0)
    refused("v_skip is 1", v_skip=1.0)
    refused("'later'", prefill="later")
    refused("'int3'", cache_format="int3")
    refused("'float16'", prefill_compute="float16")
    refused("Only one of key and value", value=None)
    refused("key has shape", key=np.zeros((2, 3, 5)))
    refused("Only one of past_key and past_value", past_key=past)
    refused(
        "past_key is float32: this cache_format is stored as float16",
        past_key=past,
        past_value=past,
        cache_format="float16",
    )
    refused("past_value has shape", past_key=past, past_value=past[:1])
    refused("4 rows and past_value 3", past_key=past, past_value=past[:, :, :3])
    refused("without total_sequence_length", seqlens_k=np.array([2, 2], np.int32))
    refused(
        r"seqlens_k\[1\] is 9", past_key=past, past_value=past, **{**lengths, "seqlens_k": np.array([2, 9], np.int32)}
    )
    refused("says 2 tokens but the call brings 3", **{**lengths, "seqlens_k": np.array([3, 1], np.int32)})
    refused("has 1 past tokens but past_key holds 0", **lengths)
    refused("row 1, column 2", attention_mask=np.array([[1, 1, 1, 1], [0, 1, 0, 1]]), past_key=past, past_value=past)
    refused("2 columns for 3 new tokens", attention_mask=np.ones((2, 2), np.int64))
    for entry in (2, -1):
        mask = np.array([[1, 1, 1, 1], [0, 1, entry, 1]])
        refused(f"has a {entry} at row 1, column 2", attention_mask=mask, past_key=past, past_value=past)
    refused("without cos_cache", do_rotary=1)
    short = np.ones((2, 2), np.float32)
    refused("position 2 but cos_cache has 2 rows", do_rotary=1, cos_cache=short, sin_cache=short)
    wide = np.ones((9, 5), np.float32)
    refused("5 columns for head size 7", do_rotary=1, cos_cache=wide, sin_cache=wide)
    refused("attention_bias has shape", attention_bias=np.zeros((2, HQ, 3, 4)))
    refused("head_sink has shape", head_sink=np.zeros(HKV))
