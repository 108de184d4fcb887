"""What stored weights cost by themselves: the dense model with them against the dense model with those it came from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.calibration.reference import Reference
from deltallm_onnx.evaluation.confidence import divergence_interval, scaled_interval
from deltallm_onnx.runtime.model import DecoderModel

Float64 = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class WeightsCost:
    """Predictions of a dense model with stored weights beside those of the same model before.

    Attributes:
        name: of the storage, such as "int4".
        divergence: float64 [N], mean KL divergence from the model before in each window, nats per token.
        loss: float64 [N], mean negative log-likelihood in each window, nats per token.
        baseline_loss: the same of the model before.
        tokens: per window.
        seconds: wall time of the calls.
        baseline_seconds: of the model before.
        seed: of the confidence intervals.
    """

    name: str
    divergence: Float64
    loss: Float64
    baseline_loss: Float64
    tokens: int
    seconds: float
    baseline_seconds: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; an interval is null for a single window."""
        ppl_interval = scaled_interval(np.expm1, self.loss - self.baseline_loss, self.seed)
        kl_interval = divergence_interval(self.divergence, self.seed)
        return {
            "name": self.name,
            "kl": float(self.divergence.mean()),
            "kl_interval": None if kl_interval is None else list(kl_interval),
            "perplexity": float(np.exp(self.loss.mean())),
            "baseline_perplexity": float(np.exp(self.baseline_loss.mean())),
            "perplexity_increase": float(np.expm1((self.loss - self.baseline_loss).mean())),
            "perplexity_increase_interval": None if ppl_interval is None else list(ppl_interval),
            "windows": len(self.loss),
            "tokens": len(self.loss) * self.tokens,
            "seconds": round(self.seconds, 3),
            "baseline_seconds": round(self.baseline_seconds, 3),
        }

    @property
    def line(self) -> str:
        """What a user reads."""
        found = self.to_dict()
        kl, ppl = found["kl_interval"], found["perplexity_increase_interval"]
        return (
            f"{self.name} weights alone, against the weights as they were: kl {found['kl']:z.4f}"
            + ("" if kl is None else f" [{kl[0]:z.4f}, {kl[1]:z.4f}]")
            + f", perplexity {found['baseline_perplexity']:.3f} → {found['perplexity']:.3f}, "
            f"{found['perplexity_increase']:+z.2%}"
            + ("" if ppl is None else f" [{ppl[0]:+z.2%}, {ppl[1]:+z.2%}]")
            + "; the budget is kept on top of that"
        )


def measure_weights(
    before: Path,
    stored: Path,
    windows: npt.NDArray[np.int64],
    *,
    name: str,
    folder: Path,
    seed: int,
    threads: int | None = None,
    on_read: Callable[[], None] = lambda: None,
) -> WeightsCost:
    """Read windows with both models, one after the other: never are the weights of both in memory.

    Args:
        before: the dense .onnx file with the weights as they were.
        stored: the same model with stored weights.
        windows: token ids [N, S], S ≥ 2.
        name: of the storage.
        folder: for temporary files.
        seed: of the confidence intervals.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        on_read: called after each window of each model.

    Raises:
        DeltaLLMError: where a model cannot be run, or the disk has no room for the predictions.
    """
    N, S = windows.shape
    reference = Reference(windows, folder)
    reference.fill(DecoderModel(before, threads=threads), on_read)
    model = DecoderModel(stored, threads=threads)
    divergence, loss, seconds = np.zeros(N), np.zeros(N), 0.0
    for number, window in enumerate(windows):
        cache = model.new_cache(limit=S)
        began = time.perf_counter()
        logits = model.step(window[None], cache)[0][0]
        seconds += time.perf_counter() - began
        divergence[number], loss[number] = reference.score(number, logits)
        on_read()
    return WeightsCost(name, divergence, loss, reference.loss(N), S, seconds, reference.seconds, seed)
