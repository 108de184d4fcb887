"""What docs/spec.md section 3 says must follow, held against the compiled operator itself."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.random_cases import Case, key_rows
from support.single_op import fallback_model, operator_model, run, session

SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": (HealthCheck.too_slow,)}
HKV, G, D = 2, 3, 5

RULES = st.fixed_dictionaries(
    {
        "scale": st.just(0.0),
        "softcap": st.sampled_from([0.0, 2.0]),
        "local_window_size": st.sampled_from([-1, 7]),
        "do_rotary": st.integers(0, 1),
        "rotary_interleaved": st.integers(0, 1),
        "delta_window": st.sampled_from([0, 1, 4, 9, 21]),
        "sinks": st.sampled_from([0, 1, 3]),
        "granularity": st.sampled_from(["element", "row"]),
        "row_rule": st.sampled_from(["relative", "absolute"]),
        "refresh": st.sampled_from([0, 5]),
        "v_skip": st.just(0.0),
        "prefill": st.sampled_from(["exact", "delta"]),
        "cache_format": st.sampled_from(["float32", "float16"]),
    }
)


class Layer:
    """One attention layer with a fixed token sequence that can be fed in pieces.

    Args:
        rules: attributes of the operator.
        library: path of the operator library.
        tokens: T, length of the sequence; row 0 of the batch begins with two padded tokens.
        threshold: θ of the two KV heads.
    """

    def __init__(self, rules: dict[str, Any], library: str, *, tokens: int, threshold: Any = (0.25, 0.5)) -> None:
        rng = np.random.default_rng(31)
        self.tokens = tokens
        self.attributes = {"num_heads": HKV * G, "kv_num_heads": HKV, **rules}
        self.query = rng.normal(size=(2, tokens, HKV * G * D)).astype(np.float32)
        keys = key_rows(rng, (2, HKV, tokens, D), grid=False)
        self.key = keys.transpose(0, 2, 1, 3).reshape(2, tokens, HKV * D)
        self.value = rng.normal(size=(2, tokens, HKV * D)).astype(np.float32)
        self.mask = np.ones((2, tokens), np.int64)
        self.mask[0, :2] = 0
        angles = rng.uniform(0, 6, (tokens, 2))
        self.constants = {"threshold": np.array(threshold, np.float32)}
        if rules["do_rotary"]:
            self.constants |= {"cos_cache": np.cos(angles).astype("f4"), "sin_cache": np.sin(angles).astype("f4")}
        self.session: ort.InferenceSession = session(
            operator_model(Case(self.inputs(0, 1, *self.empty()), self.attributes)), library
        )

    def empty(self) -> list[np.ndarray]:
        """A past without rows."""
        return [np.zeros((2, HKV, 0, D), self.attributes["cache_format"]) for _ in range(2)]

    def inputs(self, first: int, last: int, past_key: np.ndarray, past_value: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the call that brings tokens `first` to `last` − 1."""
        part = slice(first, last)
        return {
            "query": self.query[:, part],
            "key": self.key[:, part],
            "value": self.value[:, part],
            "past_key": past_key,
            "past_value": past_value,
            "attention_mask": self.mask[:, :last],
            **self.constants,
        }

    def feed(self, sizes: list[int], past: list[np.ndarray] | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
        """All outputs [2,T',Hq·D] and the final caches, from one call per size, after `past`."""
        past = self.empty() if past is None else past
        outputs = []
        for size in sizes:
            at = past[0].shape[2]
            out, *past, _ = self.session.run(None, self.inputs(at, at + size, *past))
            outputs.append(out)
        return np.concatenate(outputs, axis=1), past


def assert_same_caches(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    """Equal bit by bit wherever a real token is: row 0 begins with two padded ones."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[0, :, 2:], b[0, :, 2:])
        np.testing.assert_array_equal(a[1], b[1])


@settings(max_examples=60, **SETTINGS)
@given(rules=RULES, cuts=st.sets(st.integers(1, 22), max_size=6))
def test_chunked_equals_one_shot_equals_token_by_token(rules: dict[str, Any], cuts: set[int], library: str) -> None:
    layer = Layer(rules, library, tokens=23)
    whole, caches = layer.feed([23])
    for sizes in (np.diff([0, *sorted(cuts), 23]).tolist(), [1] * 23):
        output, chunked_caches = layer.feed(sizes)
        assert_same_caches(chunked_caches, caches)
        if rules["prefill"] == "delta":
            np.testing.assert_allclose(output, whole, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, **SETTINGS)
@given(rules=RULES)
def test_threshold_zero_or_a_window_over_everything_is_dense(rules: dict[str, Any], library: str) -> None:
    dense_rules = {**rules, "delta_window": 30, "sinks": 0}
    dense, dense_caches = Layer(dense_rules, library, tokens=19, threshold=(0, 0)).feed([8, 11])
    for changed, threshold in ((rules, (0, 0)), ({**rules, "delta_window": 19}, (9, 9))):
        output, caches = Layer(changed, library, tokens=19, threshold=threshold).feed([8, 11])
        np.testing.assert_allclose(output, dense, rtol=1e-5, atol=1e-5)
        assert_same_caches(caches, dense_caches)


@settings(max_examples=40, **SETTINGS)
@given(rules=RULES, length=st.integers(3, 20))
def test_rewind_forgets_the_dropped_tokens(rules: dict[str, Any], length: int, library: str) -> None:
    layer = Layer(rules, library, tokens=21)
    _, long = layer.feed([21])
    kept = [cache[:, :, :length] for cache in long]
    # The same tokens again: what was coded stays as it is.
    _, again = layer.feed([1] * (21 - length), kept)
    assert_same_caches(again, long)
    # Other tokens instead: the cache of a run that never saw the dropped ones.
    rng = np.random.default_rng(41)
    for tensor in (layer.key, layer.value):
        tensor[:, length:] = rng.normal(size=tensor[:, length:].shape)
    _, straight = layer.feed([21])
    output, rewound = layer.feed([1] * (21 - length), kept)
    assert_same_caches(rewound, straight)
    if rules["delta_window"] + rules["sinks"] >= 21:
        never, _ = layer.feed([length] + [1] * (21 - length))
        np.testing.assert_allclose(output, never[:, length:], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, **SETTINGS)
@given(rules=RULES, theta=st.tuples(st.floats(0, 1.5, width=32), st.floats(0, 1.5, width=32)))
def test_scores_stay_within_the_bound(rules: dict[str, Any], theta: tuple[float, float], library: str) -> None:
    rules = {**rules, "cache_format": "float32"}
    _, (held, _) = Layer(rules, library, tokens=18, threshold=theta).feed([18])
    _, (exact, _) = Layer(rules, library, tokens=18, threshold=(0, 0)).feed([18])
    query = np.random.default_rng(37).normal(size=(2, HKV, 18, D))
    error = np.abs(np.sum(query * (held.astype(float) - exact), axis=-1))
    limit = np.array(theta)[:, None]
    if rules["granularity"] == "element":
        bound = limit * np.abs(query).sum(axis=-1)
    else:
        rho = np.linalg.norm(exact.astype(float), axis=-1) if rules["row_rule"] == "relative" else 1.0
        bound = limit * rho * np.linalg.norm(query, axis=-1)
    # Padded rows are no keys.
    assert (error <= bound * (1 + 1e-6))[1].all()
    assert (error <= bound * (1 + 1e-6))[0, :, 2:].all()


@pytest.mark.parametrize("granularity", ["element", "row"])
def test_nan_is_transmitted_and_forgotten(granularity: str, library: str) -> None:
    rules = {"scale": 0.0, "do_rotary": 0, "delta_window": 1, "granularity": granularity, "cache_format": "float32"}
    layer = Layer(rules, library, tokens=9, threshold=(50, 50))
    layer.key[:, 4, 2] = np.nan
    _, (cache, _) = layer.feed([9])
    # Channel 2 of KV head 0: held at the first real row, then the NaN, then the next value until the window.
    for b, start in ((0, 2), (1, 0)):
        channel = cache[b, 0, :, 2]
        assert (channel[start:4] == layer.key[b, start, 2]).all()
        assert np.isnan(channel[4])
        assert (channel[5:8] == layer.key[b, 5, 2]).all()


@pytest.mark.parametrize("granularity", ["element", "row"])
@pytest.mark.parametrize("implementation", ["operator", "fallback"])
def test_padding_is_no_reference(granularity: str, implementation: str, library: str) -> None:
    rules = {"scale": 0.0, "do_rotary": 0, "delta_window": 0, "granularity": granularity, "cache_format": "float32"}
    # A threshold over everything: all rows repeat the first real one, and never the padded ones before it.
    layer = Layer(rules, library, tokens=7, threshold=(50, 50))
    case = Case(layer.inputs(0, 7, *layer.empty()), layer.attributes)
    model, use = (operator_model(case), library) if implementation == "operator" else (fallback_model(case), None)
    _, cache, _, _ = run(model, case.inputs, use)
    keys = layer.key.reshape(2, 7, HKV, D).transpose(0, 2, 1, 3)
    for b, start in ((0, 2), (1, 0)):
        np.testing.assert_array_equal(cache[b, :, start:], np.repeat(keys[b, :, start : start + 1], 7 - start, axis=1))
