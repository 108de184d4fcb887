"""What a study has found so far, and the JSON file that says it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from deltallm_onnx.calibration.budget import Budget
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import write_json
from deltallm_onnx.sweep.measuring import ALLOCATION, CANDIDATE, MACHINE, NUMBERS
from deltallm_onnx.sweep.objectives import QUALITY, Objective
from deltallm_onnx.sweep.space import Candidate
from deltallm_onnx.sweep.study import IDENTITY, cut_off, finished

FORMAT, VERSION = "deltallm-sweep", 1
#: Numbers that every trial has.
_NEEDED = ("kl", "perplexity_increase", "delta_sparsity", "kv_bytes_per_token", "baseline_kv_bytes_per_token")


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """A finished trial.

    Attributes:
        number: in the study.
        candidate: what was measured.
        numbers: what came out, by the counters' names.
        allocation: the thresholds' scales, and what the curves had promised.
        environment: the machine it was measured on.
    """

    number: int
    candidate: Candidate
    numbers: Mapping[str, float]
    allocation: Mapping[str, Any]
    environment: Mapping[str, Any]

    @classmethod
    def of(cls, trial: FrozenTrial) -> TrialResult:
        """Of a trial in the storage.

        Raises:
            DeltaLLMError: where it is none of ours.
        """
        try:
            data = dict(trial.user_attrs[CANDIDATE])
            data.pop("label")
            candidate = Candidate(**data)
            candidate.config()
            found = trial.user_attrs[NUMBERS]
            numbers = {name: float(found[name]) for name in dict.fromkeys([*_NEEDED, *found])}
            own = trial.user_attrs[ALLOCATION], trial.user_attrs[MACHINE]
            return cls(trial.number, candidate, numbers, *own)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DeltaLLMError(
                f"Trial {trial.number} of the study was not made by sweep: give another --study."
            ) from (error)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "trial": self.number,
            "label": self.candidate.label,
            **self.numbers,
            "candidate": dataclasses.asdict(self.candidate),
            "allocation": dict(self.allocation),
            "environment": dict(self.environment),
        }


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A study as it stands.

    Attributes:
        study: its name.
        storage: its URL, without password.
        identity: what it measures: digests of model and text, objectives and space.
        objectives: in its order.
        trials: finished ones, in order of their numbers.
        front: numbers of those that no other one beats in all objectives, best quality first.
        counts: trials by state.
        cut_off: trials that ended without a result → number and state of the one that tries the same again, or None.
    """

    study: str
    storage: str
    identity: Mapping[str, Any]
    objectives: tuple[Objective, ...]
    trials: tuple[TrialResult, ...]
    front: tuple[int, ...]
    counts: Mapping[str, int]
    cut_off: Mapping[int, tuple[int, str] | None]

    @classmethod
    def of(cls, study: optuna.Study, storage: str, objectives: Sequence[Objective]) -> SweepResult:
        """Of a study; the other arguments are the attributes'.

        Raises:
            DeltaLLMError: where it holds trials that are none of ours.
        """
        trials = tuple(TrialResult.of(trial) for trial in finished(study))
        by_number = {trial.number: trial for trial in trials}
        # Only trials that were read above: another process may have finished one since.
        best = [trial.number for trial in study.best_trials if trial.number in by_number] if trials else []
        best.sort(key=lambda number: (by_number[number].numbers[QUALITY], number))
        states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
        return cls(
            study=study.study_name,
            storage=storage,
            identity=study.user_attrs[IDENTITY],
            objectives=tuple(objectives),
            trials=trials,
            front=tuple(best),
            counts={state.name.lower(): states.get(state, 0) for state in TrialState if state.name != "PRUNED"},
            cut_off={
                number: None if again is None else (again.number, again.state.name.lower())
                for number, again in cut_off(study).items()
            },
        )

    @property
    def best(self) -> tuple[TrialResult, ...]:
        """The trials of the front, best quality first."""
        by_number = {trial.number: trial for trial in self.trials}
        return tuple(by_number[number] for number in self.front)

    def keeping(self, budget: Budget) -> TrialResult:
        """The trial that gives most within a budget, or keeps it at the smallest divergence.

        Raises:
            DeltaLLMError: where none keeps it, with the best one's value.
        """
        judged = [(trial, value(trial, budget)) for trial in self.trials]
        if not judged:
            raise DeltaLLMError(f"The study {self.study!r} has no finished trial to choose: give --trials above 0.")
        kept = [trial for trial, reached in judged if budget.met(reached)]
        if not kept:
            nearest = (min if budget.spends else max)((reached for _, reached in judged), key=budget.progress)
            raise DeltaLLMError(
                f"No trial of the study {self.study!r} keeps {budget.text}: the best of {len(judged)} has "
                f"{budget.show(nearest)}; run more trials or give another budget."
            )
        if not budget.spends:
            return min(kept, key=lambda trial: (trial.numbers[QUALITY], trial.number))
        gain = next(objective for objective in self.objectives if objective.name != QUALITY)
        sign = 1 if gain.direction == "minimize" else -1
        return min(kept, key=lambda trial: (sign * trial.numbers[gain.name], trial.numbers[QUALITY], trial.number))

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "study": self.study,
            "storage": self.storage,
            "objectives": {objective.name: objective.direction for objective in self.objectives},
            "identity": dict(self.identity),
            "counts": dict(self.counts),
            "cut_off": [
                {"trial": number, "again": None if again is None else again[0]}
                for number, again in self.cut_off.items()
            ],
            "front": list(self.front),
            "trials": [{**trial.to_dict(), "on_front": trial.number in self.front} for trial in self.trials],
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            DeltaLLMError: where the disk refuses it.
        """
        write_json(path, self.to_dict())


def value(trial: TrialResult, budget: Budget) -> float:
    """The number that a budget is about, as `Budget.value` takes it from a measurement."""
    if budget.metric == "kl":
        return trial.numbers["kl"]
    if budget.metric == "ppl":
        return trial.numbers["perplexity_increase"]
    if budget.metric == "delta_sparsity":
        return trial.numbers["delta_sparsity"]
    per_token = trial.numbers["kv_bytes_per_token"]
    return trial.numbers["baseline_kv_bytes_per_token"] / per_token if budget.ratio else per_token
