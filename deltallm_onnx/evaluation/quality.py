"""Predictions on windows of one length, summed up: in total and by position, with confidence intervals."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.evaluation.confidence import divergence_interval, scaled_interval
from deltallm_onnx.evaluation.log_probabilities import Predictions

#: The first bucket of positions ends here, each further one is twice as long as all before it.
FIRST_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Quality:
    """Of P predictions over all windows. Intervals are (low, high) at 95 %, None with a single window.

    What needs a baseline is None without one.

    Attributes:
        predictions: P.
        perplexity: exp of the mean loss in nats.
        top1_accuracy: share of predictions whose most probable token came.
        baseline_perplexity: of the baseline, on the same predictions.
        baseline_top1_accuracy: likewise.
        perplexity_ratio: perplexity / baseline_perplexity; the interval is that of paired windows.
        kl: mean KL(baseline ‖ model), in nats.
        top1_agreement: share of predictions where both have the same most probable token.
    """

    predictions: int
    perplexity: float
    perplexity_interval: tuple[float, float] | None
    top1_accuracy: float
    baseline_perplexity: float | None = None
    baseline_perplexity_interval: tuple[float, float] | None = None
    baseline_top1_accuracy: float | None = None
    perplexity_ratio: float | None = None
    perplexity_ratio_interval: tuple[float, float] | None = None
    kl: float | None = None
    kl_interval: tuple[float, float] | None = None
    top1_agreement: float | None = None
    top1_agreement_interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, windows: Sequence[Predictions], seed: int) -> Quality:
        """Of windows with the same number of predictions each, at least one.

        Args:
            windows: of each window.
            seed: of the bootstrap.
        """
        count = sum(len(window.loss) for window in windows)
        loss = np.array([window.loss.mean() for window in windows])
        own = cls(
            predictions=count,
            perplexity=_exp(loss.mean()),
            perplexity_interval=scaled_interval(np.exp, loss, seed),
            top1_accuracy=_mean([window.hit for window in windows]).mean().item(),
        )
        if windows[0].baseline_loss is None:
            return own
        baseline = _mean([window.baseline_loss for window in windows])
        divergence, agree = (_mean([getattr(w, name) for w in windows]) for name in ("kl", "agree"))
        return dataclasses.replace(
            own,
            baseline_perplexity=_exp(baseline.mean()),
            baseline_perplexity_interval=scaled_interval(np.exp, baseline, seed),
            baseline_top1_accuracy=_mean([window.baseline_hit for window in windows]).mean().item(),
            perplexity_ratio=_exp((loss - baseline).mean()),
            perplexity_ratio_interval=scaled_interval(np.exp, loss - baseline, seed),
            kl=divergence.mean().item(),
            kl_interval=divergence_interval(divergence, seed),
            top1_agreement=agree.mean().item(),
            top1_agreement_interval=scaled_interval(_share, agree, seed),
        )


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Predictions of the tokens at positions begin … end − 1 of their windows; position 0 is the first token."""

    begin: int
    end: int
    quality: Quality

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"begin": self.begin, "end": self.end, **dataclasses.asdict(self.quality)}


def bucket_edges(first: int, tokens: int) -> list[tuple[int, int]]:
    """Buckets begin … end − 1 of the predicted positions first … tokens − 1: to 63, to 127, to 255 and so on.

    One that would hold less than half of FIRST_BUCKET is joined with its neighbour.
    """
    edges, end, least = [first], FIRST_BUCKET, FIRST_BUCKET // 2
    while end <= tokens - least:
        if end - edges[-1] >= least:
            edges.append(end)
        end *= 2
    return list(itertools.pairwise([*edges, tokens]))


def by_position(windows: Sequence[Predictions], first: int, seed: int) -> list[Bucket]:
    """The quality of every bucket of positions.

    Args:
        windows: predictions of the tokens first, first + 1, … of each window.
        first: position of the first predicted token.
        seed: of the bootstrap.
    """
    tokens = first + len(windows[0].loss)
    return [
        Bucket(begin, end, Quality.of([window.part(begin - first, end - first) for window in windows], seed))
        for begin, end in bucket_edges(first, tokens)
    ]


def _mean(windows: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[np.float64]:
    """The mean of every window."""
    return np.array([np.mean(window) for window in windows if window is not None])


def _exp(value: Any) -> float:
    """Overflow is infinity: a perplexity can be that bad."""
    return math.inf if value >= 700 else math.exp(value)


def _share(ends: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(ends, 0, 1)
