"""The table and the lines that `deltallm-onnx sweep` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from deltallm_onnx.sweep.result import SweepResult, TrialResult

_NUMBERS = (
    "kl",
    "perplexity_increase",
    "kv_bytes_per_token",
    "delta_sparsity",
    "attn_mac_sparsity",
    "decode_time",
    "seconds",
)
_HEADINGS = {
    "decode_time": "decode time",
    "seconds": "wall (s)",
}
#: What became of the trial that tries again what another one did not finish, by its state.
_AGAIN = {
    "complete": " and was measured again as trial {}",
    "running": " and is being measured again as trial {}",
    "waiting": " and waits to be measured again as trial {}",
    "fail": ", and so was trial {} that measured it again",
    "pruned": ", and so was trial {} that measured it again",
}
#: Rows of a front that fit on a screen or two.
MOST_ROWS = 40


def front_table(result: SweepResult) -> Table:
    """The trials that no other one beats, best quality first; of a long front, evenly chosen ones."""
    best = result.best
    shown = best if len(best) <= MOST_ROWS else [best[i * (len(best) - 1) // (MOST_ROWS - 1)] for i in range(MOST_ROWS)]
    wanted = dict.fromkeys([*_NUMBERS, *(objective.name for objective in result.objectives)])
    names = [name for name in wanted if any(name in trial.numbers for trial in shown)]
    table = Table()
    table.add_column("trial", justify="right")
    for name in names:
        table.add_column(_HEADINGS.get(name, name), justify="right")
    table.add_column("candidate")
    for trial in shown:
        table.add_row(str(trial.number), *(_text(trial, name) for name in names), trial.candidate.label)
    return table


def summary(result: SweepResult) -> str:
    """One line on the whole study."""
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items() if count)
    names = ", ".join(objective.name for objective in result.objectives)
    front = f"{len(result.front)} on the front of {names}"
    return f"study {result.study} in {result.storage}: {counts or 'no trials'}; {front}"


def cut_off_lines(result: SweepResult) -> list[str]:
    """What became of every trial without a result."""
    return [
        f"trial {number} ended without a result"
        if again is None
        else f"trial {number} was cut off{_AGAIN[again[1]].format(again[0])}"
        for number, again in result.cut_off.items()
    ]


def trial_line(trial: TrialResult) -> str:
    """One finished trial."""
    numbers = ("kl", "kv_bytes_per_token", "delta_sparsity", "decode_time", "seconds")
    shown = ", ".join(f"{_HEADINGS.get(name, name)} {_text(trial, name)}" for name in numbers if name in trial.numbers)
    return f"trial {trial.number}: {shown}: {trial.candidate.label}"


def _text(trial: TrialResult, name: str) -> str:
    value = trial.numbers.get(name)
    if value is None:
        return "–"
    if name == "perplexity_increase":
        return f"{round(value, 4) + 0.0:+.2%}"  # no −0
    if name == "kv_bytes_per_token":
        return f"{value:.1f}"
    if name == "decode_time":
        return f"{value:.2f}×"
    return f"{round(value, 4) + 0.0:.4f}" if name == "kl" else f"{value:.3f}"
