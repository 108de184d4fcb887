"""`deltallm-onnx sweep`: many settings measured, and those that no other one beats."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltallm_onnx.cli.calibrate_options import TextOptions, takes_text_options
from deltallm_onnx.cli.interrupt import Interrupted
from deltallm_onnx.cli.output import print_json, print_note, print_table
from deltallm_onnx.cli.plan_hint import plan_hint
from deltallm_onnx.cli.sweep_options import SpaceOptions, takes_space_options
from deltallm_onnx.cli.sweep_tables import cut_off_lines, front_table, summary, trial_line
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.side_files import context_length

if TYPE_CHECKING:
    from deltallm_onnx.sweep.result import TrialResult

#: Holds the storage's URL, whose password would otherwise stand in the list of processes.
STORAGE_VARIABLE = "DELTALLM_STORAGE"


@takes_text_options
@takes_space_options
def sweep_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A dense .onnx with its tokenizer beside it, or a Hugging Face model."),
    ],
    *,
    study: Annotated[str, typer.Option(metavar="NAME", help="The study: made, or continued and shared.")],
    storage: Annotated[
        str,
        typer.Option(metavar="URL", envvar=STORAGE_VARIABLE, show_envvar=True, help="The database it lies in."),
    ] = "sqlite:///sweep.db",
    trials: Annotated[
        int, typer.Option(metavar="N", help="Stop when the study has so many finished ones, of all processes.")
    ] = 100,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Begin no further trial after so long.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The JSON file to write, with every trial.")] = None,
    best: Annotated[
        str | None,
        typer.Option(metavar="kl=X | ppl=+X% | kv_bytes=X[x] | …", help="Write the plan that serves this budget best."),
    ] = None,
    plan_out: Annotated[Path, typer.Option(metavar="FILE", help="The file that --best writes.")] = Path(
        "deltallm.json"
    ),
    sampler: Annotated[str, typer.Option(metavar="tpe | nsga2 | random", help="What proposes candidates.")] = "tpe",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the run that makes the study; others draw their own.")] = 0,
    effort: Annotated[
        str, typer.Option(metavar="full | short", help="How finely single heads are measured.")
    ] = "short",
    grace: Annotated[
        int, typer.Option(metavar="SECONDS", help="A running trial that is silent for so long is tried again.")
    ] = 60,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads within an operator [default: ONNX Runtime's choice]."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the study as one JSON object.")] = False,
    corpus: TextOptions,
    searched: SpaceOptions,
) -> None:
    """Measure many settings, and show those that no other one beats in quality, bytes and time together."""
    if importlib.util.find_spec("optuna") is None:
        raise DeltaLLMError("sweep needs optuna: pip install 'deltallm-onnx[sweep]'.")
    from deltallm_onnx.calibration.api import Corpus  # noqa: PLC0415  # lazily: the passes take a while
    from deltallm_onnx.calibration.budget import parse_budget  # noqa: PLC0415
    from deltallm_onnx.export.output import check_writable  # noqa: PLC0415
    from deltallm_onnx.sweep.api import sweep  # noqa: PLC0415
    from deltallm_onnx.sweep.request import SweepRequest, find_objectives, space_for  # noqa: PLC0415

    for path in (out, None if best is None else plan_out):
        if path is not None:
            check_writable(path)
    objectives = find_objectives(searched.objective or (), time=searched.time)
    context = context_length(Path(model) if Path(model).is_dir() else Path(model).parent)
    request = SweepRequest(
        model=model,
        corpus=Corpus(corpus.files, corpus.text_key, corpus.window_tokens, corpus.text_windows),
        study=study,
        objectives=objectives,
        space=space_for(
            objectives,
            granularities=searched.granularity or (),
            rules=searched.rule or (),
            windows=searched.windows(context),
            sinks=searched.all_sinks(),
            v_skips=searched.v_skips(),
            cache_formats=searched.cache_format or (),
            max_kl=searched.max_kl,
            text_tokens=_text_tokens(corpus.window_tokens, context),
        ),
        storage=storage,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        seed=seed,
        max_kl=searched.max_kl,
        past=searched.past,
        effort=effort,
        grace=grace,
        threads=threads,
        scratch=Path() if out is None else out.parent,
        best=None if best is None else parse_budget(best),
    )
    try:
        with _shown_progress() as progress:
            found, chosen = sweep(request, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted("finished trials are in the storage, and the same command goes on from there.") from None
    if out is not None:
        found.save(out)
    if chosen is not None:
        chosen.save(plan_out)
    if json_output:
        print_json(found.to_dict() if chosen is None else {**found.to_dict(), "best": chosen.summary()})
        return
    print_table(front_table(found))
    print("\n".join([summary(found), *cut_off_lines(found)]))
    if chosen is not None:
        print("\n".join(chosen.lines))
        print(f"wrote {plan_out} of trial {chosen.settings['trial']}; {plan_hint(model, plan_out)}")
    if out is not None:
        print(f"wrote {out}")


def _text_tokens(asked: int | None, context: int | None) -> int | None:
    """Of one window of text; None where only the opened model says it."""
    from deltallm_onnx.calibration.text import LONGEST_WINDOW  # noqa: PLC0415

    if asked is not None:
        return asked
    return None if context is None else min(LONGEST_WINDOW, context)


class _SweepProgress:
    """A bar on a terminal, and a line for every finished trial in any case, on stderr."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("opening the model", total=None)

    def step(self, what: str) -> None:
        """Name the step."""
        self._bar.update(self._task, description=what)

    def note(self, sentence: str) -> None:
        """One line."""
        self._print(sentence)

    def trials(self, done: int, wanted: int) -> None:
        """Move on."""
        self._bar.update(self._task, completed=done, total=wanted)

    def trial(self, found: TrialResult) -> None:
        """One line."""
        self._print(trial_line(found))

    def _print(self, line: str) -> None:
        if self._bar.disable:
            print_note(line)
        else:
            self._bar.console.print(line, highlight=False)


@contextlib.contextmanager
def _shown_progress() -> Iterator[_SweepProgress]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield _SweepProgress(bar)
