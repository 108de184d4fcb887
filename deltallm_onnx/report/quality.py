"""What held keys cost in predictions: over all of them, and by position in the window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import Predictions
from deltallm_onnx.evaluation.confidence import divergence_interval, scaled_interval
from deltallm_onnx.evaluation.quality import bucket_edges
from deltallm_onnx.report.reading import Reading


def quality_section(
    predictions: Sequence[Predictions], reading: Reading, baseline: Reading | None, window_tokens: int
) -> dict[str, Any]:
    """Scores against the text and against the baseline, JSON-ready.

    Args:
        predictions: of every window, S − 1 each; with or without a baseline's.
        reading: the model's.
        baseline: the dense model's, or None.
        window_tokens: S.

    Returns:
        Perplexities are exp of the mean negative log-likelihood; KL is KL(baseline ‖ model) in nats per token. Interval
        ends are those of 95 % of bootstrap means over windows; None for a single window. Keys that need a baseline are
        absent without one.

    Raises:
        DeltaLLMError: where predictions are not numbers.
    """
    loss = np.stack([found.loss for found in predictions])
    columns = {"loss": loss}
    if baseline is not None:
        columns["baseline_loss"] = np.stack([_given(found.baseline_loss) for found in predictions])
        columns["kl"] = np.stack([_given(found.kl) for found in predictions])
        columns["agree"] = np.stack([_given(found.agree) for found in predictions]).astype(np.float64)
    if not all(np.isfinite(values).all() for values in columns.values()):
        raise DeltaLLMError(
            "Some predictions are not finite numbers: the model's weights or its thresholds are broken."
        )
    section: dict[str, Any] = {
        "windows": len(predictions),
        "window_tokens": window_tokens,
        "predictions": int(loss.size),
        **_scores(columns, slice(None)),
        "seconds": reading.seconds,
        "tokens_per_second": len(predictions) * window_tokens / reading.seconds,
    }
    if baseline is not None:
        section["baseline_seconds"] = baseline.seconds
        section["baseline_tokens_per_second"] = len(predictions) * window_tokens / baseline.seconds
    section["by_position"] = [
        {"from": begin, "to": end - 1, **_scores(columns, slice(begin - 1, end - 1))}
        for begin, end in bucket_edges(1, window_tokens)
    ]
    return section


def _scores(columns: dict[str, npt.NDArray[np.float64]], positions: slice) -> dict[str, Any]:
    """Of some positions of all windows."""
    means = {name: values[:, positions].mean(axis=1) for name, values in columns.items()}
    scores: dict[str, Any] = {"perplexity": _perplexity(means["loss"].mean())}
    if "kl" not in means:
        return scores
    change = means["loss"] - means["baseline_loss"]
    return scores | {
        "baseline_perplexity": _perplexity(means["baseline_loss"].mean()),
        "perplexity_increase": math.expm1(change.mean()),
        "perplexity_increase_interval": _ends(scaled_interval(np.expm1, change)),
        "kl": float(means["kl"].mean()),
        "kl_interval": _ends(divergence_interval(means["kl"])),
        "top1_agreement": float(means["agree"].mean()),
    }


def _ends(interval: tuple[float, float] | None) -> list[float] | None:
    """As JSON has it."""
    return None if interval is None else list(interval)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def _given(values: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if values is None:
        raise ValueError("These predictions have no baseline.")
    return values
