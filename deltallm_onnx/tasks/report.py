"""What tasks found, as JSON and as lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.counters import Counters
from deltallm_onnx.tasks.intervals import Z95, paired_difference, wilson

_NOTHING_CODED = "no text is longer than window and sinks: nothing was held, so this says nothing of delta attention"


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of one model on one task.

    Attributes:
        value: as the harness gives it; most are shares from 0 to 1.
        stderr: its standard error; None where the harness has none.
        items: how many items it is a mean of.
        chance: what choosing at random would score, or of squadv2 saying nothing; None where neither has a meaning.
        per_item: the items' own scores, where they are numbers, else empty.
    """

    value: float
    stderr: float | None
    items: int
    chance: float | None = None
    per_item: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval: Wilson's where there is a chance level, else value ± 1.96·stderr."""
        if self.chance is not None:
            return wilson(self.value, self.items)
        return None if self.stderr is None else (self.value - Z95 * self.stderr, self.value + Z95 * self.stderr)

    @property
    def at_chance(self) -> bool | None:
        """Whether the interval includes `chance`; None without one."""
        if self.chance is None or self.interval is None:
            return None
        low, high = self.interval
        return low <= self.chance <= high

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the items."""
        return {
            "value": self.value,
            "stderr": self.stderr,
            "interval": None if self.interval is None else list(self.interval),
            "items": self.items,
            "chance": self.chance,
            "at_chance": self.at_chance,
        }


@dataclasses.dataclass(frozen=True)
class TaskScores:
    """One model on one task.

    Attributes:
        metrics: by name.
        items: items asked.
        requests: texts scored or generated for them.
        seconds: wall time of the model's calls.
        tokens: tokens those calls read.
        counters: raw counts over them; None for a dense model.
    """

    metrics: Mapping[str, Metric]
    items: int
    requests: int
    seconds: float
    tokens: int
    counters: Counters | None

    @property
    def counted(self) -> dict[str, float | None] | None:
        """The counters by name, None for what these calls did not do: hold or decode; None without counters."""
        found = self.counters
        if found is None:
            return None
        done = {"delta_sparsity": found.delta_total, "kv_bytes_read": found.decoded_tokens}
        return {name: value if done.get(name, 1) else None for name, value in found.to_dict().items()}

    @property
    def nothing_coded(self) -> bool:
        """Whether no key left the window, so that the task says nothing about delta attention."""
        return self.counters is not None and self.counters.delta_total == 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "items": self.items,
            "requests": self.requests,
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "seconds": self.seconds,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds if self.seconds else None,
            "counters": self.counted,
            "nothing_coded": self.nothing_coded,
        }


@dataclasses.dataclass(frozen=True)
class TaskReport:
    """A model on tasks, and maybe a baseline on the same items.

    Attributes:
        model: path of the model.
        baseline: path of the baseline.
        mode: where held keys were read, see `evaluation.reading.Mode`.
        limit: items per task, if limited: the first ones.
        seed: of the harness's choices.
        scores: by task.
        baseline_scores: by task; empty without a baseline.
        versions: of the harness.
    """

    model: str
    baseline: str | None
    mode: str
    limit: int | None
    seed: int
    scores: Mapping[str, TaskScores]
    baseline_scores: Mapping[str, TaskScores]
    versions: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: per task the scores, the baseline's and the paired differences."""
        return {
            "model": self.model,
            "baseline": self.baseline,
            "mode": self.mode,
            "limit": self.limit,
            "seed": self.seed,
            "versions": dict(self.versions),
            "tasks": {
                task: {
                    **scores.to_dict(),
                    "baseline": self.baseline_scores[task].to_dict() if task in self.baseline_scores else None,
                    "differences": self.differences(task),
                }
                for task, scores in self.scores.items()
            },
        }

    def with_baseline(self, baseline: Path | None) -> TaskReport:
        """The same under the name that the user gave the baseline."""
        return dataclasses.replace(self, baseline=None if baseline is None else str(baseline))

    def differences(self, task: str) -> dict[str, dict[str, Any]]:
        """Model − baseline over the same items, by metric: mean, standard error, items whose score changed."""
        found: dict[str, dict[str, Any]] = {}
        theirs = self.baseline_scores[task].metrics if task in self.baseline_scores else {}
        for name, metric in self.scores[task].metrics.items():
            if name not in theirs or not metric.per_item or len(theirs[name].per_item) != len(metric.per_item):
                continue
            mean, stderr = paired_difference(metric.per_item, theirs[name].per_item)
            changed = sum(a != b for a, b in zip(metric.per_item, theirs[name].per_item, strict=True))
            found[name] = {"value": mean, "stderr": stderr, "items_changed": changed}
        return found

    @property
    def lines(self) -> list[str]:
        """A table of text: per task and metric a score and how sure it is, chance, and the baseline."""
        limited = "" if self.limit is None else f", the first {self.limit} items of each"
        lines = [
            f"tasks in mode {self.mode}{limited}; in brackets 95 % intervals by Wilson's score, ± is one standard error"
        ]
        for task, scores in self.scores.items():
            differences = self.differences(task)
            for name, metric in scores.metrics.items():
                line = f"  {task:<14} {name:<12} {_value(metric):<24} {_chance(metric):<24}"
                if task in self.baseline_scores and name in self.baseline_scores[task].metrics:
                    line += f" baseline {_value(self.baseline_scores[task].metrics[name]):<24}"
                if name in differences:
                    line += f" difference {_difference(differences[name])}"
                lines.append(line.rstrip())
            lines.append(f"  {'':<14} {_work(scores)}")
            if scores.nothing_coded:
                lines.append(f"  {'':<14} {_NOTHING_CODED}")
        return lines


def _value(metric: Metric) -> str:
    if metric.chance is not None and metric.interval is not None:
        # What is said of chance goes by this interval: the standard error of few items may be 0.
        low, high = (100 * end for end in metric.interval)
        return f"{100 * metric.value:.1f} % [{low:.1f}, {high:.1f}]"
    if not 0 <= metric.value <= 1:
        return f"{metric.value:.4g}" + ("" if metric.stderr is None else f" ± {metric.stderr:.2g}")
    return f"{100 * metric.value:.1f} %" + ("" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}")


def _chance(metric: Metric) -> str:
    if metric.chance is None:
        return ""
    # The sentence a reader must not miss: such a score says nothing about the model.
    where = "at" if metric.at_chance else "below" if metric.value < metric.chance else "above"
    return f"{where} chance ({100 * metric.chance:.1f} %)"


def _difference(found: Mapping[str, Any]) -> str:
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    return f"{100 * found['value']:+.1f}{error} points, {found['items_changed']} items changed"


def _work(scores: TaskScores) -> str:
    line = f"{scores.items} items, {scores.tokens} tokens read in {scores.seconds:.1f} s"
    counted = (scores.counted or {}).items()
    return line + "".join(f", {name} {'–' if value is None else f'{value:.4g}'}" for name, value in counted)
