"""Logits to what is scored: log-probabilities, divergence, agreement. All of it in float64, some rows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

#: Bytes that one float64 slice of logits may take. Slices that stay in the processor's cache are scored three to eight
#: times as fast as slices of 32 MiB.
SLICE_BYTES = 1 << 20


def log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log-probabilities in nats.

    Args:
        logits: float [..., V]; −∞ stands for a token that cannot come.

    Returns:
        float64 of the same shape.
    """
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl(log_p: npt.NDArray[np.float64], log_q: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kullback-Leibler divergence KL(p ‖ q) = Σ p·(log p − log q) of every prediction, in nats.

    Args:
        log_p: the reference, float64 [..., V].
        log_q: the approximation, of the same shape.

    Returns:
        float64 [...]; ∞ where q rules out what p allows.
    """
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):  # −∞ − −∞, where p is 0 and nothing is added
        terms = p * (log_p - log_q)
    divergence: npt.NDArray[np.float64] = np.where(p > 0, terms, 0.0).sum(axis=-1)
    return divergence


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Scores of P predictions; all but the first two are None without a baseline.

    Attributes:
        loss: −log of the probability of the token that came, in nats, float64 [P].
        hit: whether that token was the most probable one, bool [P].
        baseline_loss: the same of the baseline, float64 [P].
        baseline_hit: the same of the baseline, bool [P].
        kl: KL(baseline ‖ model) in nats, float64 [P].
        agree: whether both have the same most probable token, bool [P].
    """

    loss: npt.NDArray[np.float64]
    hit: npt.NDArray[np.bool_]
    baseline_loss: npt.NDArray[np.float64] | None = None
    baseline_hit: npt.NDArray[np.bool_] | None = None
    kl: npt.NDArray[np.float64] | None = None
    agree: npt.NDArray[np.bool_] | None = None

    def part(self, begin: int, end: int) -> Predictions:
        """Those numbered begin … end − 1."""

        def column(name: str) -> Any:
            found = getattr(self, name)
            return None if found is None else found[begin:end]

        return Predictions(**{field.name: column(field.name) for field in dataclasses.fields(self)})


def score(
    logits: npt.NDArray[Any], targets: npt.NDArray[np.int64], baseline: npt.NDArray[Any] | None = None
) -> Predictions:
    """Score predictions against the tokens that came, and against the baseline's predictions.

    Args:
        logits: float [P, V].
        targets: token ids int64 [P], below V.
        baseline: the baseline's logits, float [P, V].
    """
    P, V = logits.shape
    loss, baseline_loss, divergence = np.zeros(P), np.zeros(P), np.zeros(P)
    for rows in row_slices(P, V):
        log_q = log_softmax(logits[rows])
        at = np.arange(len(log_q)), targets[rows]
        loss[rows] = -log_q[at]
        if baseline is not None:
            log_p = log_softmax(baseline[rows])
            baseline_loss[rows] = -log_p[at]
            divergence[rows] = kl(log_p, log_q)
    best = logits.argmax(axis=-1)
    if baseline is None:
        return Predictions(loss, best == targets)
    best_of_baseline = baseline.argmax(axis=-1)
    return Predictions(
        loss, best == targets, baseline_loss, best_of_baseline == targets, divergence, best == best_of_baseline
    )


def row_slices(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that take at most SLICE_BYTES as float64, one row at least."""
    size = max(1, SLICE_BYTES // (8 * columns))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
