"""What a calibration found, and deltallm.json: everything needed to use it, judge it and repeat it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.allocate import Curve
from deltallm_onnx.calibration.budget import Budget
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.plan_file import FORMAT, VERSION
from deltallm_onnx.calibration.search import Tried
from deltallm_onnx.calibration.weights_cost import WeightsCost
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.evaluation.confidence import divergence_interval, scaled_interval
from deltallm_onnx.export.output import write_json
from deltallm_onnx.plural import plural

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Reached:
    """The numbers of a plan on one part of the text, beside the dense model's.

    Intervals are those of 95 % over windows; None for a single window, which says nothing about others.

    Attributes:
        measured: of the plan.
        dense: of the dense model, on the same windows.
        seed: of the confidence intervals.
    """

    measured: Measurement
    dense: Measurement
    seed: int

    @property
    def kl_interval(self) -> Interval | None:
        """Of the divergence."""
        return divergence_interval(self.measured.divergence, self.seed)

    @property
    def perplexity_interval(self) -> Interval | None:
        """Of the increase of perplexity, by the mean difference per window: windows are paired."""
        return scaled_interval(np.expm1, self.measured.loss - self.dense.loss, self.seed)

    def interval(self, budget: Budget) -> Interval | None:
        """Of the budget's metric; None also for counters, which are not estimated."""
        if budget.metric == "kl":
            return self.kl_interval
        return self.perplexity_interval if budget.metric == "ppl" else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        counters = self.measured.counters.to_dict()
        # Whole windows were read by one call each: no token was decoded.
        del counters["kv_bytes_read"]
        return {
            "kl": self.measured.kl,
            "kl_interval": _ends(self.kl_interval),
            "perplexity": self.measured.perplexity,
            "baseline_perplexity": self.dense.perplexity,
            "perplexity_increase": self.measured.perplexity_increase(self.dense),
            "perplexity_increase_interval": _ends(self.perplexity_interval),
            **counters,
            "baseline_kv_bytes_per_token": self.dense.counters.kv_bytes_per_token,
            "windows": self.measured.windows,
            "tokens": self.measured.windows * self.measured.tokens,
            "seconds": round(self.measured.seconds, 3),
            "baseline_seconds": round(self.dense.seconds, 3),
        }


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The result.

    Attributes:
        config: global settings; what the plan says for each layer is not read from it.
        plan: thresholds of all layers.
        budget: that was asked for.
        calibration: numbers on the search part, which the plan was fitted to.
        verification: numbers on text that nothing was chosen by.
        rules: the rule of each layer, by layer number.
        curves: what was measured of single heads or layers.
        tried: plans measured on the search part, in order.
        text: name, digest and windows of the text.
        model: name and digest of the model.
        settings: what else the calibration was asked for: effort, candidates, seed.
        notes: what a user should know, one sentence each.
        environment: machine and versions.
        seconds: wall time.
        weights: what the weights' storage costs by itself; None where they are as they were, or it was not measured.
    """

    config: DeltaConfig
    plan: AttentionPlan
    budget: Budget
    calibration: Reached
    verification: Reached
    rules: Mapping[int, str]
    curves: Sequence[Curve]
    tried: Sequence[Tried]
    text: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    notes: Sequence[str]
    environment: Mapping[str, Any]
    seconds: float
    weights: WeightsCost | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of deltallm.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "config": self.config.to_dict(),
            **self.plan.to_dict(),
            "rules": {str(layer): rule for layer, rule in self.rules.items()},
            "budget": self.budget.to_dict(),
            "reached": {"calibration": self.calibration.to_dict(), "verification": self.verification.to_dict()},
            "weights": None if self.weights is None else {**self.weights.to_dict(), "with_attention": self._together},
            "text": dict(self.text),
            "model": dict(self.model),
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "sensitivity": [curve.to_dict() for curve in self.curves],
            "search": [tried.to_dict() for tried in self.tried],
            "environment": dict(self.environment),
            "seed": self.settings["seed"],
            "seconds": round(self.seconds, 1),
        }

    def summary(self) -> dict[str, Any]:
        """What was asked for and reached, without the thresholds and measurements behind it."""
        whole = self.to_dict()
        return {key: whole[key] for key in ("budget", "reached", "weights", "rules", "text", "notes", "seconds")}

    def noting(self, notes: Sequence[str]) -> Calibration:
        """The same with more notes."""
        return dataclasses.replace(self, notes=[*self.notes, *notes])

    def save(self, path: Path) -> None:
        """Write deltallm.json, whole or not at all.

        Raises:
            DeltaLLMError: where the disk refuses it.
        """
        write_json(path, self.to_dict())

    @property
    def lines(self) -> list[str]:
        """What a user reads: before → after on the verification part."""
        reached, dense = self.verification, self.verification.dense.counters
        counters, measured = reached.measured.counters, reached.measured
        kl = _brackets(reached.kl_interval, "z.4f")
        ppl = _brackets(reached.perplexity_interval, "+z.2%")
        others, brackets = "windows", "in brackets 95 % intervals"
        if measured.windows == 1:
            others, brackets = "window", "one window gives no interval"
        kinds = Counter(self.rules.values())
        rules = ", ".join(f"{rule} in {count}" for rule, count in kinds.items())
        bytes_before, bytes_after = dense.kv_bytes_per_token, counters.kv_bytes_per_token
        sparsities = {name: value for name, value in counters.to_dict().items() if name.endswith("sparsity")}
        lines = [
            f"calibrated for {self.budget.text} on {self.text['name']}",
            f"  {self._settings}; layers by rule: {rules}",
            f"verified on {measured.windows} other {others} of {measured.tokens} tokens ({brackets})",
            f"  kl                  0 → {measured.kl:z.4f}{kl} nats per token",
            f"  perplexity          {reached.dense.perplexity:.3f} → {measured.perplexity:.3f}, ",
            f"  kv_bytes_per_token  {bytes_before:.0f} → {bytes_after:.1f}, {bytes_before / bytes_after:.1f}x less",
            *(f"  {name:18}  0 → {value:.3f}" for name, value in sparsities.items()),
            f"  wall time           {reached.dense.seconds:.2f} s → {measured.seconds:.2f} s, reading whole windows; ",
        ]
        lines[4] += f"{measured.perplexity_increase(reached.dense):+z.2%}{ppl}"
        lines[-1] += "decoding was not timed"
        if self.weights is not None:
            together = self._together
            ppl = _brackets(together["perplexity_increase_interval"], "+z.2%")
            lines.append(self.weights.line)
            lines.append(
                f"weights and delta attention together: perplexity {together['baseline_perplexity']:.3f} → "
                f"{together['perplexity']:.3f}, {together['perplexity_increase']:+z.2%}{ppl}"
            )
        return [*lines, *(f"note: {note}" for note in self.notes)]

    @property
    def _together(self) -> dict[str, Any]:
        """What the verification part costs against the weights as they were; both were read on the same windows."""
        if self.weights is None:
            return {}
        before, after = self.weights.baseline_loss, self.verification.measured.loss
        return {
            "perplexity": self.verification.measured.perplexity,
            "baseline_perplexity": float(np.exp(before.mean())),
            "perplexity_increase": float(np.expm1((after - before).mean())),
            "perplexity_increase_interval": _ends(scaled_interval(np.expm1, after - before, self.verification.seed)),
        }

    @property
    def _settings(self) -> str:
        config = self.config
        return (
            f"{config.cache_format} cache, {config.granularity} granularity, window {config.window}, "
            f"{plural(config.sinks, 'sink')}, v_skip {self.plan.layers[0].v_skip:g}"
        )


def _ends(interval: Interval | None) -> list[float] | None:
    """As JSON has it."""
    return None if interval is None else list(interval)


def _brackets(interval: Sequence[float] | None, form: str) -> str:
    """Behind the number that it is of."""
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
