"""Confidence intervals of means over windows, by the bootstrap."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

#: Stretches of a text that count as one draw each: neighbouring windows are of one chapter, or of one book.
STRETCHES = 8
#: Resamples; the ends of a 95 % interval of so many move by about one per cent of its width with the seed.
REPLICATES = 10_000


def bootstrap_interval(
    values: npt.NDArray[Any], *, seed: int = 0, level: float = 0.95, replicates: int = REPLICATES
) -> npt.NDArray[np.float64] | None:
    """Interval of the mean over the first axis: the expanded percentile bootstrap.

    Values of one window depend on each other, so windows are drawn, not predictions. All columns see the same draws.
    Percentile intervals of few values are too narrow; the percentiles are moved outwards as Hesterberg proposes ("What
    Teachers Should Know About the Bootstrap", 2015, section 4.1), so that for normal data they are about Student's.

    Resamples never leave the range of the values, which holds the median of their distribution in 1 − 2^(1−N) of all
    cases: below 6 values in fewer than 95 %. Student's interval itself stands for so few.

    Args:
        values: one number per window [N], or [N, K] for K means at once.
        seed: of the draws.
        level: share of intervals that hold the true mean.
        replicates: number of resamples.

    Returns:
        float64 [2] or [2, K]: the lower and the upper end. None for N < 2, which say nothing about their spread.
    """
    N = len(values)
    if N < 2:
        return None
    range_level = 1 - 2.0 ** (1 - N)
    if range_level < level:
        return _student_interval(values.astype(np.float64), level)
    counts = np.random.default_rng(seed).multinomial(N, np.full(N, 1 / N), size=replicates)
    means = counts @ values.astype(np.float64) / N
    tail = _expanded_tail((1 - level) / 2, N)
    interval: npt.NDArray[np.float64] = np.quantile(means, [tail, 1 - tail], axis=0)
    return interval


def scaled_interval(
    scale: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]], values: npt.NDArray[np.float64], seed: int = 0
) -> tuple[float, float] | None:
    """A 95 % interval of a monotone function of the mean: intervals go through any such function.

    Args:
        scale: rising, or constant beyond a bound.
        values: one number per window [N].
        seed: of the draws.

    Returns:
        The lower and the upper end. None for N < 2, and where a value is not finite.
    """
    if not np.isfinite(values).all():
        return None
    ends = bootstrap_interval(values, seed=seed)
    if ends is None:
        return None
    low, high = (float(end) for end in scale(ends))
    return low, high


def divergence_interval(values: npt.NDArray[np.float64], seed: int = 0) -> tuple[float, float] | None:
    """`scaled_interval` of a mean divergence: from 0 on, which Student's interval of few windows may go below."""
    return scaled_interval(lambda ends: np.maximum(ends, 0), values, seed)


def upper_limit(values: npt.NDArray[np.float64], confidence: float) -> float:
    """What the mean over more text of the kind stays below, as far as the differences within this text tell.

    Student's one-sided limit from the means of up to `STRETCHES` stretches of neighbouring windows: windows that stand
    next to each other are alike, and taken one by one they would promise too much (the method of batch means).

    Args:
        values: one number per window [N], in the order of the text.
        confidence: share of such limits that lie above the true mean, ≥ ½ and < 1; ½ is the mean itself.

    Returns:
        The limit; the mean for N < 2, which say nothing about their spread.
    """
    mean = float(values.mean())
    if len(values) < 2 or confidence <= 0.5:
        return mean
    stretches = np.array([part.mean() for part in np.array_split(values, min(STRETCHES, len(values)))])
    error = float(stretches.std(ddof=1)) / math.sqrt(len(stretches))
    return mean + student_quantile(1 - confidence, len(stretches) - 1) * error


def _student_interval(values: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    N = len(values)
    half = student_quantile((1 - level) / 2, N - 1) * values.std(axis=0, ddof=1) / math.sqrt(N)
    return np.stack([values.mean(axis=0) - half, values.mean(axis=0) + half])


def _expanded_tail(tail: float, N: int) -> float:
    """Φ(−√(N / (N−1))·t), t being Student's quantile with N − 1 degrees of freedom."""
    return statistics.NormalDist().cdf(-math.sqrt(N / (N - 1)) * student_quantile(tail, N - 1))


@functools.lru_cache
def student_quantile(tail: float, nu: int) -> float:
    """The t > 0 that Student's variable with ν ≥ 1 degrees of freedom exceeds with probability `tail` < ½.

    Bisection of P(|T| < √ν·tan φ), a finite sum over an angle φ (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """

    def within(angle: float) -> float:
        sine, cosine = math.sin(angle), math.cos(angle)
        # Even ν: sin φ·(1 + ½cos²φ + …); odd ν: 2/π·(φ + sin φ·(cos φ + ⅔cos³φ + …)), each of ν // 2 terms.
        term, total = 1.0 if nu % 2 == 0 else cosine, 0.0
        for k in range(nu // 2):
            total += term
            step = 2 * k + 1 + nu % 2
            term *= cosine**2 * step / (step + 1)
        return sine * total if nu % 2 == 0 else 2 / math.pi * (angle + sine * total)

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 1 - 2 * tail else (low, middle)
    return math.sqrt(nu) * math.tan(low)
