"""Budgets: what a calibration may spend, or has to reach."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.confidence import upper_limit

Metric = Literal["kl", "ppl", "delta_sparsity", "kv_bytes"]

#: What the sentences about budgets show.
FORMS = "kl=0.02, ppl=+1%, delta_sparsity=0.6, kv_bytes=64 or kv_bytes=12x"


@dataclasses.dataclass(frozen=True)
class Budget:
    """One limit on one measured number.

    Attributes:
        metric: "kl": mean KL divergence from the dense model, in nats per token, at most. "ppl": perplexity over the
            dense model's on the same windows, minus 1, at most. "delta_sparsity": at least. "kv_bytes": the counter
            kv_bytes_per_token, in bytes per token and layer, at most.
        limit: in that unit; of kv_bytes with `ratio`, how many times below float32.
        ratio: kv_bytes only: whether `limit` is relative to a float32 cache.
        text: as it was given.
    """

    metric: Metric
    limit: float
    text: str
    ratio: bool = False

    @property
    def spends(self) -> bool:
        """Whether it limits what is lost; the others ask for something to be gained, at the smallest loss."""
        return self.metric in ("kl", "ppl")

    def value(self, measured: Measurement, dense: Measurement) -> float:
        """The number that this budget is about.

        Args:
            measured: of the rewritten model.
            dense: of the dense model, on the same windows.
        """
        if self.metric == "kl":
            return measured.kl
        if self.metric == "ppl":
            return measured.perplexity_increase(dense)
        if self.metric == "delta_sparsity":
            return measured.counters.delta_sparsity
        per_token = measured.counters.kv_bytes_per_token
        return dense.counters.kv_bytes_per_token / per_token if self.ratio else per_token

    def limit_value(self, measured: Measurement, dense: Measurement, confidence: float) -> float:
        """What a loss stays below on more text of the kind, as far as the differences within this text tell.

        Args:
            measured: of the rewritten model.
            dense: of the dense model, on the same windows.
            confidence: as in `upper_limit`; counters are as they are.
        """
        if self.metric == "kl":
            return upper_limit(measured.divergence, confidence)
        if self.metric == "ppl":
            return math.expm1(upper_limit(measured.loss - dense.loss, confidence))
        return self.value(measured, dense)

    def progress(self, value: float) -> float:
        """The value, turned so that more held keys make it larger: bytes per token count downwards."""
        return -value if self.metric == "kv_bytes" and not self.ratio else value

    @property
    def target(self) -> float:
        """The limit, turned like `progress`."""
        return self.progress(self.limit)

    def met(self, value: float) -> bool:
        """Whether a measured value keeps this budget."""
        progress = self.progress(value)
        return progress <= self.target if self.spends else progress >= self.target

    def show(self, value: float) -> str:
        """A value of this metric for people, in the form that budgets are given."""
        if self.metric == "ppl":
            return f"ppl={value:+z.2%}"
        if self.metric == "kv_bytes":
            return f"kv_bytes={value:.2f}x" if self.ratio else f"kv_bytes={value:.1f}"
        return f"{self.metric}={value:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)


_FORM = re.compile(r"\s*([a-z_]+)\s*=\s*(\+?)\s*([0-9.eE+-]+)\s*(%|[xX×])?\s*")


def parse_budget(text: str) -> Budget:
    """Read what stands behind --budget.

    Args:
        text: METRIC=VALUE; "ppl" takes a share such as +1% (or 0.01), "kv_bytes" bytes or a ratio such as 12x.

    Raises:
        DeltaLLMError: for another form, and for a limit that no model could be asked for.
    """
    found = _FORM.fullmatch(text)
    metric, number, unit = (found[1], _number(found[3]), found[4] or "") if found else ("", math.nan, "")
    units: dict[str, Sequence[str]] = {
        "kl": ("",),
        "ppl": ("", "%"),
        "delta_sparsity": ("", "%"),
        "kv_bytes": ("", "x", "X", "×"),
    }
    if metric not in units or unit not in units[metric] or not math.isfinite(number):
        raise DeltaLLMError(f"The budget {text!r} has no known form: give one such as {FORMS}.")
    limit = number / 100 if unit == "%" else number
    if limit <= 0:
        raise DeltaLLMError(f"The budget {text!r} asks for {limit:g}: give a number above 0, such as {FORMS}.")
    if metric == "ppl" and limit >= 1:
        raise DeltaLLMError(f"The budget {text!r} is {limit:.0%} of the perplexity: give a share such as ppl=+1%.")
    if metric == "delta_sparsity" and limit > 1:
        raise DeltaLLMError(f"The budget {text!r} asks for {limit:.0%} of all keys: give a share up to 1.")
    name: Metric = next(known for known in get_args(Metric) if known == metric)
    return Budget(name, limit, text.strip(), ratio=metric == "kv_bytes" and unit != "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
