"""Every rule holds what its formula says, decided by the oracle's hold transform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.rules import RULES, Rule, find_rule, layer_plan
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.reference.hold import hold

HEADS, SIZE = 3, 5


def statistics(seed: int = 1) -> LayerStatistics:
    random = np.random.default_rng(seed)
    tables = {
        name: random.uniform(0.2, 3, (HEADS, SIZE))
        for name in ("query_rms", "key_rms", "key_std", "change_rms", "value_rms")
    }
    return LayerStatistics(LayerGeometry(7, 6, HEADS, SIZE), scale=0.5, tokens=100, **tables)


def change_and_bound(rule: Rule, s: LayerStatistics, alpha: np.ndarray, k: np.ndarray, d: np.ndarray) -> tuple:
    """Left and right side of the rule's inequality for key k [H, D] and change d [H, D], as its definition reads."""
    norm = np.linalg.norm
    sides = {
        ("element", "uniform"): (np.abs(d), alpha[:, None]),
        ("element", "sigma"): (np.abs(d) / s.key_std, alpha[:, None]),
        ("element", "query"): (np.abs(d) * s.query_rms, alpha[:, None]),
        ("row", "relative"): (norm(d, axis=1) / norm(k, axis=1), alpha),
        ("row", "absolute"): (norm(d, axis=1), alpha),
        ("row", "query"): (np.sqrt(((s.query_rms * d) ** 2).sum(axis=1)), alpha),
        ("row", "query-relative"): (norm(s.query_rms * d, axis=1) / norm(s.query_rms * k, axis=1), alpha),
    }
    return sides[rule.granularity, rule.name]


@pytest.mark.parametrize("key", RULES, ids=" ".join)
def test_holds_what_the_formula_says(key: tuple) -> None:
    rule, s, held = RULES[key], statistics(), []
    random = np.random.default_rng(3)
    for _ in range(300):
        alpha = random.uniform(0.2, 1.5, HEADS)
        before = random.normal(size=(HEADS, SIZE)).astype(np.float32)
        now = (before + random.normal(size=(HEADS, SIZE)) * random.uniform(0, 1)).astype(np.float32)
        left, right = change_and_bound(rule, s, alpha, now.astype(float), now.astype(float) - before)
        if (np.abs(left - right) < 1e-5).any():
            continue  # the threshold is rounded to float32
        plan = layer_plan(rule, s, alpha)
        after = hold(
            now[None, :, None],
            plan.threshold,
            granularity=plan.granularity,
            row_rule=plan.row_rule,
            row_weight=plan.row_weight,
            reference=before[None],
        )[0, :, 0]
        expected = np.where(left <= right, before, now) if rule.granularity == "element" else None
        if expected is None:
            expected = np.where((left <= right)[:, None], before, now)
        np.testing.assert_array_equal(after, expected)
        held.append((left <= right).mean())
    assert len(held) > 250
    assert 0.05 < np.mean(held) < 0.95, "both decisions must be seen"


@settings(deadline=None)
@given(st.sampled_from(sorted(RULES)), st.one_of(st.just(0.0), st.floats(1e-6, 1e6)), st.integers(0, 9))
def test_thresholds_grow_with_alpha_alone(key: tuple, alpha: float, seed: int) -> None:
    s, rule = statistics(seed), RULES[key]
    # Twice a number that is not subnormal rounds to twice its float32.
    one, two = layer_plan(rule, s, alpha), layer_plan(rule, s, 2 * alpha)
    np.testing.assert_array_equal(two.threshold, 2 * one.threshold)
    per_head = layer_plan(rule, s, np.full(HEADS, alpha))
    np.testing.assert_array_equal(per_head.threshold, one.threshold)
    assert (one.row_weight is None) == (not rule.weighted)
    assert one.layer == 7


def test_channels_without_queries_stay_finite() -> None:
    """A channel that no query reads is free to hold; a head that none reads at all too."""
    s = statistics()
    s.query_rms[0, 2] = 0
    s.query_rms[1] = 0
    plan = layer_plan(find_rule("element", "query"), s, 0.5)
    assert np.isfinite(plan.threshold).all()
    assert plan.threshold[0, 2] > 1e5 * np.delete(plan.threshold[0], 2).max()
    np.testing.assert_array_equal(plan.threshold[1], np.float32(0.5))
    assert (layer_plan(find_rule("element", "query"), s, 0.0).threshold == 0).all()
    assert np.isfinite(layer_plan(find_rule("element", "query"), s, 1e38).threshold).all()


def test_refusals() -> None:
    with pytest.raises(DeltaLLMError, match="Granularity row has no rule 'sigma': choose one of relative, absolute"):
        find_rule("row", "sigma")
    rule = find_rule("row", "relative")
    with pytest.raises(DeltaLLMError, match=r"alpha has shape \[2\]"):
        layer_plan(rule, statistics(), np.ones(2))
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(DeltaLLMError, match="alpha holds a negative or non-finite number"):
            layer_plan(rule, statistics(), wrong)
