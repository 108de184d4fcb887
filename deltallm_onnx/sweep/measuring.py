"""One trial: a candidate's numbers on the text, and its decode time where that is an objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.meter import Meter
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.sweep.objectives import QUALITY, Objective, values
from deltallm_onnx.sweep.plans import Plans, describe
from deltallm_onnx.sweep.space import Space

#: A trial's attributes: its candidate, its numbers, the thresholds behind it, and what they were measured on.
CANDIDATE, NUMBERS, ALLOCATION, MACHINE = "candidate", "measured", "allocation", "environment"

#: Global settings and a plan → decode times.
Timer = Callable[[DeltaConfig, AttentionPlan], dict[str, float]]


class TrialObjective:
    """What Optuna calls with every trial.

    Args:
        space: of candidates.
        plans: makes their plans.
        meter: measures them on the search part of the text.
        objectives: in the study's order.
        max_kl: divergence that makes a trial infeasible, in nats per token; None sets no limit.
        timer: measures decode times; None leaves them out.
        environment: of this machine, kept with each trial.
    """

    def __init__(
        self,
        space: Space,
        plans: Plans,
        meter: Meter,
        objectives: Sequence[Objective],
        *,
        max_kl: float | None,
        timer: Timer | None,
        environment: dict[str, Any],
    ) -> None:
        self._space, self._plans, self._meter, self._objectives = space, plans, meter, tuple(objectives)
        self._max_kl, self._timer, self._environment = max_kl, timer, environment

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Measure a trial; its numbers are in the storage before its values are.

        Raises:
            DeltaLLMError: where the model cannot be run.
        """
        candidate = self._space.suggest(trial)
        config, plan = candidate.config(), self._plans.plan(candidate)
        measured = self._meter.measure("search", config, plan)
        found: dict[str, Any] = numbers(measured, self._meter.dense("search"))
        if self._timer is not None:
            found.update(self._timer(config, plan))
        trial.set_user_attr(CANDIDATE, {**vars(candidate), "label": candidate.label})
        trial.set_user_attr(NUMBERS, found)
        trial.set_user_attr(ALLOCATION, describe(self._plans.allocation(candidate)))
        trial.set_user_attr(MACHINE, self._environment)
        if self._max_kl is not None:
            trial.set_constraint("max_kl", found[QUALITY] - self._max_kl)
        return values(self._objectives, found)


def numbers(measured: Measurement, dense: Measurement) -> dict[str, float]:
    """What is kept of a measurement.

    Args:
        measured: of a plan.
        dense: of the dense model, on the same windows.
    """
    counters = measured.counters.to_dict()
    # Whole windows were read by one call each: no token was decoded.
    del counters["kv_bytes_read"]
    return {
        "kl": measured.kl,
        "perplexity": measured.perplexity,
        "baseline_perplexity": dense.perplexity,
        "perplexity_increase": measured.perplexity_increase(dense),
        **counters,
        "baseline_kv_bytes_per_token": dense.counters.kv_bytes_per_token,
        "seconds": round(measured.seconds, 3),
        "baseline_seconds": round(dense.seconds, 3),
    }
