"""The layout of DeltaLLM's accuracy table with our numbers: dense, delta attention in prefill, and in both stages.

Of the paper (arXiv 2507.19608) only what its abstract says stands here: attention sparsity of 60 % in prefill and about
57 % over prefill and decode, for BitNet-b1.58-2B-4T and Llama3.2-1B-Instruct. Our figure beside it is
`qk_mac_sparsity`, the counter that is nearest to it (docs/spec.md section 6).
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.counters import Counters
from deltallm_onnx.tasks.report import Metric, TaskReport, TaskScores

#: Attention sparsity in the paper's abstract, in percent, by mode.
PAPER_SPARSITY = {"prefill": 60, "prefill+decode": 57}
SOURCE = "arXiv 2507.19608, abstract"

#: The first of these that a task has stands for it.
_SHOWN = ("acc", "f1", "exact_match")


@dataclasses.dataclass(frozen=True)
class PaperReport:
    """The same model and tasks in the paper's two modes.

    Attributes:
        prefill: mode "prefill"; without the tasks that generate text.
        both: mode "prefill+decode".
    """

    prefill: TaskReport
    both: TaskReport

    def with_baseline(self, baseline: Path | None) -> PaperReport:
        """The same under the name that the user gave the baseline."""
        return PaperReport(self.prefill.with_baseline(baseline), self.both.with_baseline(baseline))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the table's rows, and both reports."""
        return {
            "paper": {
                "attention_sparsity": {mode: share / 100 for mode, share in PAPER_SPARSITY.items()},
                "source": SOURCE,
            },
            "qk_mac_sparsity": {
                report.mode: None if (found := _sparsity(report.scores)) is None else found
                for report in (self.prefill, self.both)
            },
            "prefill": self.prefill.to_dict(),
            "prefill+decode": self.both.to_dict(),
        }

    @property
    def lines(self) -> list[str]:
        """The table as text, percent throughout, what may not be read out of it, and both reports."""
        tasks = list(self.both.scores)
        header = ["", "paper's sparsity", "qk_mac_sparsity", *tasks]
        rows = [header]
        if self.both.baseline is not None:
            rows.append(["dense", "0 %", "0 %", *_scores(tasks, self.both.baseline_scores)])
        for title, report in (("prefill only", self.prefill), ("prefill + decode", self.both)):
            sparsity = _sparsity(report.scores)
            rows.append(
                [
                    title,
                    f"{PAPER_SPARSITY[report.mode]} %",
                    "–" if sparsity is None else f"{100 * sparsity:.1f} %",
                    *_scores(tasks, report.scores),
                ]
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        details = [*self.prefill.lines, *self.both.lines] if self.prefill.scores else self.both.lines
        return [*lines, *self._notes(), "", *details]

    def _notes(self) -> list[str]:
        notes = [
            f"paper's sparsity: {SOURCE}, for other models than this one; acc, of squadv2 f1; ± is one standard error"
        ]
        everywhere = {**self.both.baseline_scores, **self.both.scores}
        if any(_shown(scores).at_chance for scores in everywhere.values()):
            notes.append(
                "*: Wilson's 95 % interval, in brackets below, includes the score of choosing at random (squadv2: of "
                "saying nothing): at chance"
            )
        unheld = [task for task, scores in self.both.scores.items() if scores.nothing_coded]
        if unheld:
            notes.append(f"no text is longer than window and sinks in {', '.join(unheld)}: nothing was held there")
        return notes


def _scores(tasks: list[str], scores: Mapping[str, TaskScores]) -> list[str]:
    return [_score(_shown(scores[task])) if task in scores else "–" for task in tasks]


def _score(metric: Metric) -> str:
    error = "" if metric.stderr is None else f" ± {100 * metric.stderr:.1f}"
    return f"{100 * metric.value:.1f}{error}{' *' if metric.at_chance else ''}"


def _shown(scores: TaskScores) -> Metric:
    name = next((name for name in _SHOWN if name in scores.metrics), next(iter(scores.metrics)))
    return scores.metrics[name]


def _sparsity(scores: Mapping[str, TaskScores]) -> float | None:
    """qk_mac_sparsity over all tasks together; None for a model without counters."""
    counters = [found.counters for found in scores.values() if found.counters is not None]
    return functools.reduce(operator.add, counters, Counters()).qk_mac_sparsity if counters else None
