"""The hold transform against its definition, one number at a time."""

import math
from typing import Any

import numpy as np
import pytest
from support.random_cases import key_rows

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import delta_threshold, hold

B, HKV, N, D = 2, 3, 29, 5


def grid_keys(seed: int) -> np.ndarray:
    return key_rows(np.random.default_rng(seed), (B, HKV, N, D), grid=True)


@pytest.mark.parametrize("per_channel", [False, True])
def test_element_granularity_follows_the_recurrence(per_channel: bool) -> None:
    keys = grid_keys(1)
    theta = np.random.default_rng(2).choice([0, 0.125, 0.25, 0.5], (HKV, D) if per_channel else HKV).astype(np.float32)
    held = hold(keys, theta, granularity="element", sinks=2, refresh=7)
    zeros = 0
    for b in range(B):
        for h in range(HKV):
            for c in range(D):
                limit = float(theta[h, c] if per_channel else theta[h])
                reference = None
                for t in range(N):
                    k = float(keys[b, h, t, c])
                    exact = reference is None or t < 2 or t % 7 == 0
                    if exact or not abs(k - reference) <= limit:
                        reference = k
                    else:
                        zeros += k != reference
                    assert held[b, h, t, c] == reference
    assert zeros > 50, "the case must hold changed channels, or it proves nothing"


@pytest.mark.parametrize("rule", ["relative", "absolute"])
@pytest.mark.parametrize("weighted", [False, True])
def test_row_granularity_follows_the_recurrence(rule: str, weighted: bool) -> None:
    keys = grid_keys(3)
    rng = np.random.default_rng(4)
    theta = np.array([0.125, 0.25, 0.75] if rule == "relative" else [0.25, 0.75, 2], np.float32)
    weight = rng.integers(1, 5, (HKV, D)).astype(np.float32) / 2 if weighted else None
    held = hold(keys, theta, granularity="row", row_rule=rule, row_weight=weight, refresh=11)
    changed = 0
    for b in range(B):
        for h in range(HKV):
            w = [1.0] * D if weight is None else [float(x) for x in weight[h]]
            reference = None
            for t in range(N):
                k = [float(x) for x in keys[b, h, t]]
                if reference is not None and t % 11 != 0:
                    change = math.sqrt(sum((a * (x - y)) ** 2 for a, x, y in zip(w, k, reference, strict=True)))
                    rho = math.sqrt(sum((a * x) ** 2 for a, x in zip(w, k, strict=True))) if rule == "relative" else 1
                    if change <= float(theta[h]) * rho:
                        changed += k != reference
                        k = reference
                reference = k
                assert held[b, h, t].tolist() == reference
    assert changed > 5


def test_a_change_of_exactly_theta_is_held() -> None:
    keys = np.array([1.0, 1.25, 1.5], np.float32).reshape(1, 1, 3, 1)
    assert hold(keys, 0.25).ravel().tolist() == [1.0, 1.0, 1.5]
    # ‖(3, 4)‖ = 5 exactly, so the row rule meets its tie too.
    rows = np.array([[0, 0], [3, 4]], np.float32).reshape(1, 1, 2, 2)
    assert hold(rows, 5.0, granularity="row", row_rule="absolute")[0, 0, 1].tolist() == [0, 0]
    assert hold(rows, 4.99, granularity="row", row_rule="absolute")[0, 0, 1].tolist() == [3, 4]


def test_threshold_zero_changes_nothing() -> None:
    keys = np.random.default_rng(5).normal(size=(B, HKV, N, D)).astype(np.float32)
    np.testing.assert_array_equal(hold(keys, 0.0), keys)
    np.testing.assert_array_equal(hold(keys, 0.0, granularity="row"), keys)


@pytest.mark.parametrize("granularity", ["element", "row"])
def test_nan_is_never_held_and_holds_nothing(granularity: str) -> None:
    keys = np.ones((1, 1, 4, 3), np.float32)
    keys[0, 0, 1, 2] = np.nan
    keys[0, 0, 2:] = 1.0625
    held = hold(keys, 0.5, granularity=granularity, row_rule="absolute")
    assert np.isnan(held[0, 0, 1, 2])
    assert held[0, 0, 2, 2] == np.float32(1.0625), "a NaN reference must not be kept"
    assert held[0, 0, 3, 2] == held[0, 0, 2, 2]


def test_element_scores_stay_within_theta_times_q() -> None:
    keys = key_rows(np.random.default_rng(6), (B, HKV, N, D), grid=False)
    theta = np.random.default_rng(7).uniform(0, 0.6, (HKV, D)).astype(np.float32)
    q = np.random.default_rng(8).normal(size=(B, HKV, N, D))
    error = np.abs(np.sum(q * (hold(keys, theta) - keys), axis=-1))
    bound = np.sum(np.abs(q) * theta[:, None], axis=-1)
    assert (error <= bound * (1 + 1e-6)).all()
    assert error.max() > 0.1


@pytest.mark.parametrize("rule", ["relative", "absolute"])
def test_row_scores_stay_within_the_norm_bound(rule: str) -> None:
    keys = key_rows(np.random.default_rng(9), (B, HKV, N, D), grid=False)
    weight = np.random.default_rng(10).uniform(0.5, 2, (HKV, D)).astype(np.float32)
    theta = np.array([0.1, 0.3, 0.6], np.float32)
    q = np.random.default_rng(11).normal(size=(B, HKV, N, D))
    held = hold(keys, theta, granularity="row", row_rule=rule, row_weight=weight)
    w = weight[:, None].astype(np.float64)
    rho = np.linalg.norm(w * keys, axis=-1) if rule == "relative" else 1.0
    error = np.abs(np.sum(q * (held - keys), axis=-1))
    assert (error <= np.linalg.norm(q / w, axis=-1) * theta[:, None] * rho * (1 + 1e-9)).all()
    assert error.max() > 0.1


def test_holding_twice_is_holding_once() -> None:
    for granularity in ("element", "row"):
        once = hold(key_rows(np.random.default_rng(12), (B, HKV, N, D), grid=False), 0.3, granularity=granularity)
        np.testing.assert_array_equal(hold(once, 0.3, granularity=granularity), once)


def test_operator_goes_on_from_its_reference_and_its_deltas_add_up() -> None:
    keys = grid_keys(13)
    theta = np.array([0.125, 0.25, 0.5], np.float32)
    whole = hold(keys, theta, granularity="element")
    transmit = np.zeros((B, N - 10), bool)
    transmit[1, 4] = True
    held, delta = delta_threshold(
        keys[:, :, 10:], whole[:, :, 9], theta, None, transmit, granularity="element", row_rule="relative"
    )
    np.testing.assert_array_equal(held[0], whole[0, :, 10:])
    np.testing.assert_array_equal(held[1, :, 4], keys[1, :, 14])
    np.testing.assert_array_equal(whole[:, :, 9:10] + np.cumsum(delta, axis=2), held)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"threshold": np.zeros((HKV, D)), "granularity": "row"}, "one number per kv head"),
        ({"threshold": np.zeros(HKV + 1)}, r"threshold has shape \[4\]"),
        ({"threshold": -0.5}, "negative"),
        ({"threshold": np.inf}, "non-finite"),
        ({"threshold": 0.5, "granularity": "channel"}, "'channel'"),
        ({"threshold": 0.5, "row_rule": "rel"}, "'rel'"),
        ({"threshold": 0.5, "row_weight": np.ones((D, HKV))}, r"row_weight has shape \[5, 3\]"),
        ({"threshold": 0.5, "reference": np.ones((HKV, D))}, "reference has shape"),
        ({"threshold": 0.5, "transmit": np.ones((N, B))}, "transmit has shape"),
    ],
)
def test_bad_arguments_are_refused_with_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        hold(grid_keys(14), **arguments)
