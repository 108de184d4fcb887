"""What one reading of some windows gives."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import COLUMNS, Counters


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """A model's predictions on windows of equal length.

    Attributes:
        divergence: float64 [N], mean KL divergence from the dense model in each window, nats per token.
        loss: float64 [N], mean negative log-likelihood in each window, nats per token.
        statistics: int64 [Hkv, 8] per layer, summed over the windows (docs/spec.md section 6).
        tokens: per window.
        seconds: wall time of the model's calls.
        errors: where they were measured, sums of squared errors of the attention output, float64 [Hkv] per layer; the
            predictions are then the dense model's.
    """

    divergence: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    statistics: tuple[npt.NDArray[np.int64], ...]
    tokens: int
    seconds: float
    errors: tuple[npt.NDArray[np.float64], ...] | None = None

    @property
    def windows(self) -> int:
        """N."""
        return len(self.loss)

    @property
    def kl(self) -> float:
        """Mean KL divergence in nats per token."""
        return float(self.divergence.mean())

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood."""
        return math.exp(float(self.loss.mean()))

    def perplexity_increase(self, dense: Measurement) -> float:
        """Perplexity over that of `dense` on the same windows, minus 1."""
        return math.expm1(float((self.loss - dense.loss).mean()))

    @property
    def counters(self) -> Counters:
        """Over all windows; of the cache, the mean over the windows' ends."""
        return Counters.from_statistics(self.statistics, cached_tokens=self.windows * self.tokens)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values that `from_dict` reads back without a change."""
        return {
            "kl": [float(x) for x in self.divergence],
            "loss": [float(x) for x in self.loss],
            "statistics": [layer.tolist() for layer in self.statistics],
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
            "errors": None if self.errors is None else [layer.tolist() for layer in self.errors],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Measurement:
        """What `to_dict` wrote.

        Raises:
            ValueError: for anything else.
        """
        if not isinstance(data, dict) or set(data) != {"kl", "loss", "statistics", "tokens", "seconds", "errors"}:
            raise ValueError("no measurement")
        errors = None if data["errors"] is None else tuple(np.array(layer, np.float64) for layer in data["errors"])
        divergence, loss = np.array(data["kl"], np.float64), np.array(data["loss"], np.float64)
        statistics = tuple(np.array(layer, np.int64) for layer in data["statistics"])
        tokens, seconds = data["tokens"], data["seconds"]
        sound = (
            divergence.ndim == 1
            and divergence.shape == loss.shape
            and len(loss) > 0
            and all(layer.ndim == 2 and layer.shape[1] == COLUMNS for layer in statistics)
            and isinstance(tokens, int)
            and tokens > 0
            and isinstance(seconds, int | float)
            and all(layer.ndim == 1 and np.isfinite(layer).all() for layer in errors or ())
        )
        if not sound or not (np.isfinite(divergence).all() and np.isfinite(loss).all()):
            raise ValueError("no measurement")
        return cls(divergence, loss, statistics, tokens, float(seconds), errors)
