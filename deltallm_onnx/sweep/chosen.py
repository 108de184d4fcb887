"""The plan of one trial as a calibration's result, measured again: on the text it was found by, and on other text."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from deltallm_onnx.calibration.allocate import Curve
from deltallm_onnx.calibration.budget import Budget
from deltallm_onnx.calibration.meter import Meter
from deltallm_onnx.calibration.result import Calibration, Reached
from deltallm_onnx.calibration.search import Tried
from deltallm_onnx.calibration.text import TextParts
from deltallm_onnx.runtime.environment import environment
from deltallm_onnx.sweep.plans import Plans
from deltallm_onnx.sweep.result import SweepResult, TrialResult, value
from deltallm_onnx.sweep.space import Space, find


def as_calibration(
    result: SweepResult,
    trial: TrialResult,
    budget: Budget,
    *,
    space: Space,
    plans: Plans,
    meter: Meter,
    parts: TextParts,
    model: Mapping[str, Any],
    seed: int,
) -> Calibration:
    """Measure a trial's plan on the search and the verification part.

    Args:
        result: of the study.
        trial: of it.
        budget: that the trial was chosen by.
        space: of the study.
        plans: makes the plan.
        meter: opened on both parts.
        parts: the text.
        model: name and digest.
        seed: of the confidence intervals.

    Raises:
        DeltaLLMError: where the model cannot be run.
    """
    began = time.perf_counter()
    candidate = trial.candidate
    config, plan = candidate.config(), plans.plan(candidate)
    fitted, verified = (
        Reached(meter.measure(part, config, plan), meter.dense(part), seed) for part in ("search", "verification")
    )
    rule = find(candidate.rule).name
    curves: Sequence[Curve] = plans.curves[candidate.rule]
    return Calibration(
        config=config,
        plan=plan,
        budget=budget,
        calibration=fitted,
        verification=verified,
        rules={layer.layer: rule for layer in plan.layers},
        curves=curves,
        tried=[_tried(other, space, budget) for other in result.trials],
        text=parts.to_dict(),
        model=model,
        settings={
            "effort": "sweep",
            "seed": seed,
            "study": result.study,
            "trial": trial.number,
            "identity": dict(result.identity),
        },
        notes=_notes(budget, fitted, verified),
        environment=environment(),
        seconds=time.perf_counter() - began,
    )


def _tried(trial: TrialResult, space: Space, budget: Budget) -> Tried:
    numbers = trial.numbers
    return Tried(
        window=trial.candidate.window,
        knob=space.predicted_kl(trial.candidate),
        factor=1.0,
        value=value(trial, budget),
        limit=value(trial, budget),
        kl=numbers["kl"],
        perplexity_increase=numbers["perplexity_increase"],
        delta_sparsity=numbers["delta_sparsity"],
        kv_bytes_per_token=numbers["kv_bytes_per_token"],
    )


def _notes(budget: Budget, fitted: Reached, verified: Reached) -> list[str]:
    """What a user should know, where the budget is not kept everywhere."""
    notes = []
    for name, reached in (("search", fitted), ("verification", verified)):
        found = budget.value(reached.measured, reached.dense)
        if not budget.met(found):
            notes.append(f"on the {name} part the plan reaches {budget.show(found)} for a budget of {budget.text}.")
    return notes
