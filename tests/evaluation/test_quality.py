"""Sums over windows and positions, against the same sums written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.evaluation import Predictions, Quality, bootstrap_interval, by_position
from deltallm_onnx.evaluation.quality import FIRST_BUCKET, bucket_edges

N, P = 5, 210
RNG = np.random.default_rng(83)


def predictions(*, baseline: bool = True) -> list[Predictions]:
    """Of N windows; losses differ between windows and grow with the position."""
    found = []
    for window in range(N):
        loss = RNG.exponential(1 + 0.3 * window, P) + np.arange(P) / 100
        hit = RNG.random(P) < 0.3
        if not baseline:
            found.append(Predictions(loss, hit))
            continue
        other = loss - 0.02 * RNG.random(P) * (window + 1)
        found.append(Predictions(loss, hit, other, RNG.random(P) < 0.4, RNG.random(P) / 9, RNG.random(P) < 0.8))
    return found


def mean(values: Sequence[np.ndarray | None]) -> float:
    return math.fsum(float(x) for window in values if window is not None for x in window) / (len(values) * P)


def test_totals_are_those_of_all_predictions() -> None:
    windows = predictions()
    quality = Quality.of(windows, seed=3)
    assert quality.predictions == N * P
    assert quality.perplexity == pytest.approx(math.exp(mean([w.loss for w in windows])))
    assert quality.baseline_perplexity == pytest.approx(math.exp(mean([w.baseline_loss for w in windows])))
    assert quality.perplexity_ratio == pytest.approx(quality.perplexity / quality.baseline_perplexity)
    for name, column in (
        ("kl", "kl"),
        ("top1_agreement", "agree"),
        ("top1_accuracy", "hit"),
        ("baseline_top1_accuracy", "baseline_hit"),
    ):
        assert getattr(quality, name) == pytest.approx(mean([getattr(w, column) for w in windows]))


def test_intervals_are_over_windows_and_the_ratio_is_paired() -> None:
    """Windows differ by far more than the two models do: an unpaired interval of the ratio would hold 1."""
    windows = predictions()
    quality = Quality.of(windows, seed=3)
    loss, other = (np.array([getattr(w, name).mean() for w in windows]) for name in ("loss", "baseline_loss"))
    for found, values in (
        (quality.perplexity_interval, loss),
        (quality.baseline_perplexity_interval, other),
        (quality.perplexity_ratio_interval, loss - other),
    ):
        np.testing.assert_allclose(found, np.exp(bootstrap_interval(values, seed=3)))
    divergence = np.array([np.mean(w.kl) for w in windows])
    np.testing.assert_allclose(quality.kl_interval, bootstrap_interval(divergence, seed=3))
    assert quality.perplexity_ratio_interval is not None
    assert quality.perplexity_interval is not None
    assert 1 < quality.perplexity_ratio_interval[0] < quality.perplexity_ratio_interval[1] < 1.1
    assert quality.perplexity_interval[1] / quality.perplexity_interval[0] > 1.5


def test_intervals_of_few_windows_stay_where_the_figure_can_be() -> None:
    """Student's interval of two windows reaches far: a divergence is not negative, a share at most 1."""
    windows = [
        Predictions(np.full(P, loss), np.ones(P, bool), np.full(P, 1.0), np.ones(P, bool), np.full(P, kl), agree)
        for loss, kl, agree in ((1.1, 0.001, np.ones(P, bool)), (1.2, 0.1, np.arange(P) > 9))
    ]
    quality = Quality.of(windows, seed=0)
    assert quality.kl_interval is not None
    assert quality.top1_agreement_interval is not None
    assert quality.kl_interval[0] == 0
    assert quality.kl_interval[1] > 0.1
    assert quality.top1_agreement_interval[0] < 0.9
    assert quality.top1_agreement_interval[1] == 1


def test_without_a_baseline_and_with_one_window() -> None:
    quality = Quality.of(predictions(baseline=False)[:1], seed=0)
    assert quality.perplexity > 1
    missing = {name for name, value in vars(quality).items() if value is None}
    assert missing == set(vars(quality)) - {"predictions", "perplexity", "top1_accuracy"}


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    lost = [Predictions(np.full(P, np.inf), np.zeros(P, bool)), predictions(baseline=False)[0]]
    quality = Quality.of(lost, seed=0)
    assert quality.perplexity == math.inf
    assert quality.perplexity_interval is None


@pytest.mark.parametrize(
    ("first", "tokens", "edges"),
    [
        (1, 1024, [1, 64, 128, 256, 512, 1024]),
        (1, 230, [1, 64, 128, 230]),
        (1, 150, [1, 64, 150]),  # 22 behind 128 are too few
        (1, 40, [1, 40]),
        (251, 500, [251, 500]),  # 5 before 256 are too few
        (513, 1024, [513, 1024]),
        (301, 2048, [301, 512, 1024, 2048]),
    ],
)
def test_buckets(first: int, tokens: int, edges: list[int]) -> None:
    assert bucket_edges(first, tokens) == list(itertools.pairwise(edges))


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_buckets_hold_every_position_once(first: int, more: int) -> None:
    buckets = bucket_edges(first, first + more)
    assert [t for begin, end in buckets for t in range(begin, end)] == list(range(first, first + more))
    assert len(buckets) == 1 or min(end - begin for begin, end in buckets) >= FIRST_BUCKET // 2


def test_a_bucket_holds_the_predictions_of_its_positions() -> None:
    windows, first = predictions(), 21
    buckets = by_position(windows, first, seed=0)
    assert sum(bucket.quality.predictions for bucket in buckets) == N * P
    for bucket in buckets:
        part = slice(bucket.begin - first, bucket.end - first)
        expected = np.mean([w.loss[part] for w in windows])
        assert bucket.quality.perplexity == pytest.approx(math.exp(expected))
    assert [bucket.begin for bucket in buckets] == [21, 64, 128]
