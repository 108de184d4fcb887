"""Scores of predictions against the same sums in plain Python, in any slicing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.evaluation import kl, log_softmax, score
from deltallm_onnx.evaluation import log_probabilities as module
from deltallm_onnx.evaluation.log_probabilities import row_slices

P, V = 7, 13
RNG = np.random.default_rng(5)


def logits(scale: float = 3.0) -> np.ndarray:
    return (scale * RNG.standard_normal((P, V))).astype(np.float32)


def probabilities(row: np.ndarray) -> list[float]:
    weights = [math.exp(float(x) - float(row.max())) for x in row]
    return [w / math.fsum(weights) for w in weights]


def test_log_probabilities_are_those_of_plain_sums() -> None:
    x = logits()
    expected = [[math.log(p) for p in probabilities(row)] for row in x]
    np.testing.assert_allclose(log_softmax(x), expected, rtol=1e-12)
    assert log_softmax(x).dtype == np.float64


@pytest.mark.parametrize("shift", [-1e30, -500.0, 1e4, 1e30])
def test_large_logits_do_not_overflow(shift: float) -> None:
    x = logits().astype(np.float64) + shift
    with np.errstate(all="raise", under="ignore"):
        found = log_softmax(x)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-12)


def test_logits_are_not_changed() -> None:
    x = logits().astype(np.float64)
    before = x.copy()
    log_softmax(x)
    np.testing.assert_array_equal(x, before)


def test_divergence_is_that_of_plain_sums() -> None:
    x, y = logits(), logits()
    expected = [
        math.fsum(p * math.log(p / q) for p, q in zip(probabilities(a), probabilities(b), strict=True))
        for a, b in zip(x, y, strict=True)
    ]
    found = kl(log_softmax(x), log_softmax(y))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_array_equal(kl(log_softmax(x), log_softmax(x)), 0)


@given(st.integers(0, 2**32 - 1), st.floats(0, 30))
def test_divergence_is_never_negative(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    log_p, log_q = (log_softmax(scale * rng.standard_normal((3, 11))) for _ in range(2))
    assert (kl(log_p, log_q) > -1e-12).all()


def test_tokens_that_cannot_come() -> None:
    """What both rule out adds nothing; what only the approximation rules out is an infinite divergence."""
    p, q = np.array([0.0, 1.0, -np.inf]), np.array([1.0, 1.0, -np.inf])
    expected = math.fsum(a * math.log(a / 0.5) for a in probabilities(p[:2]))
    assert kl(log_softmax(p), log_softmax(q)) == pytest.approx(expected, rel=1e-12)
    assert kl(log_softmax(q), log_softmax(np.array([-np.inf, 1.0, 1.0]))) == np.inf


@pytest.mark.parametrize("rows", [1, 2, 3, P, P + 5])
def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    x, y, targets = logits(), logits(), RNG.integers(0, V, P)
    whole = score(x, targets, y)
    monkeypatch.setattr(module, "SLICE_BYTES", rows * V * 8 + 3)
    assert next(s.stop - s.start for s in row_slices(P, V)) == min(rows, P)
    sliced = score(x, targets, y)
    for name in ("loss", "hit", "baseline_loss", "baseline_hit", "kl", "agree"):
        np.testing.assert_array_equal(getattr(sliced, name), getattr(whole, name))


def test_scores_of_both_models() -> None:
    x, y, targets = logits(), logits(), RNG.integers(0, V, P)
    found = score(x, targets, y)
    for losses, source in ((found.loss, x), (found.baseline_loss, y)):
        expected = [-math.log(probabilities(row)[t]) for row, t in zip(source, targets, strict=True)]
        np.testing.assert_allclose(losses, expected, rtol=1e-12)
    best = [[max(range(V), key=row.tolist().__getitem__) for row in source] for source in (x, y)]
    assert found.hit.tolist() == [b == t for b, t in zip(best[0], targets, strict=True)]
    assert found.baseline_hit is not None
    assert found.baseline_hit.tolist() == [b == t for b, t in zip(best[1], targets, strict=True)]
    assert found.agree is not None
    assert found.agree.tolist() == [a == b for a, b in zip(*best, strict=True)]
    np.testing.assert_array_equal(found.kl, kl(log_softmax(y), log_softmax(x)))


def test_without_a_baseline_nothing_is_compared() -> None:
    found = score(logits(), RNG.integers(0, V, P))
    assert found.loss.shape == (P,)
    assert found.baseline_loss is found.baseline_hit is found.kl is found.agree is None
    assert found.part(2, 5).loss.shape == (3,)
    assert found.part(2, 5).kl is None


@given(st.integers(0, 300), st.integers(1, 10**7))
def test_slices_cover_every_row_once(rows: int, columns: int) -> None:
    slices = list(row_slices(rows, columns))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(rows))
    assert all((s.stop - s.start) * columns * 8 <= module.SLICE_BYTES or s.stop - s.start == 1 for s in slices)
