"""`deltallm-onnx eval`: what a model predicts, retrieves and takes, beside its dense form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from deltallm_onnx.cli.dense_baseline import dense_baseline
from deltallm_onnx.cli.evaluation_tables import figures_table, positions_table, retrieval_table
from deltallm_onnx.cli.output import print_json, print_note, print_table
from deltallm_onnx.cli.task_options import TaskOptions, takes_task_options
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.reading import Mode
from deltallm_onnx.evaluation.retrieval import DEPTHS, SAMPLES

if TYPE_CHECKING:
    from deltallm_onnx.evaluation.measure import Progress as Report
    from deltallm_onnx.evaluation.result import Evaluation

_MODES = get_args(Mode)


@takes_task_options
def eval_command(
    model: Annotated[Path, typer.Argument(metavar="X.onnx", help="The model to judge, rewritten or dense.")],
    *,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="The text to read, UTF-8.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="Y.onnx | DIR",
            help="The dense model that its predictions are held against, or the model directory it is traced from.",
        ),
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar=" | ".join(_MODES), help="Which calls read held keys.")
    ] = "prefill+decode",
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the tokenizer.json [default: the model's].")
    ] = None,
    window_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens per window [default: 1024, or the model's context].")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(metavar="N", help="Windows [default: what the text has, up to 16].")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Read no more tokens than this, and as many again for retrieval.")
    ] = None,
    retrieval: Annotated[bool, typer.Option(help="Measure long-range retrieval too.")] = True,
    depths: Annotated[
        str, typer.Option(metavar="D,D,…", help="Where in the context it lies, 0 = beginning, 1 = end.")
    ] = ",".join(map(str, DEPTHS)),
    retrieval_samples: Annotated[int, typer.Option(metavar="N", help="Contexts per depth and task.")] = SAMPLES,
    speed: Annotated[bool, typer.Option(help="Time decode steps too.")] = True,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads within an operator [default: ONNX Runtime's choice].")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the bootstrap and of what is to be retrieved.")] = 0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    tasks: TaskOptions,
) -> None:
    """Measure perplexity, divergence from the dense model, counters, retrieval and speed on a text, and tasks."""
    from deltallm_onnx.evaluation.request import (  # noqa: PLC0415  # numpy and ONNX Runtime
        EvaluationRequest,
        check_files,
        refuse_itself,
        run_evaluation,
    )
    from deltallm_onnx.evaluation.result import finite  # noqa: PLC0415

    tasks.refuse_unused()
    if text is None:
        _refuse_unread(tasks, {"window-tokens": window_tokens, "windows": windows, "max-tokens": max_tokens})
    request = None
    if text is not None:
        request = EvaluationRequest(
            model=model,
            text=text,
            tokenizer=tokenizer,
            mode=_mode(mode),
            window_tokens=window_tokens,
            windows=windows,
            max_tokens=max_tokens,
            depths=_depths(depths) if retrieval else (),
            retrieval_samples=retrieval_samples,
            speed=speed,
            threads=threads,
            seed=seed,
        )
        check_files(request)
    evaluation = scores = None
    with dense_baseline(baseline) as beside:
        refuse_itself(model, beside)
        # Tasks first, for their names and files can be wrong.
        if tasks.named:
            scores = tasks.evaluate(model, baseline=beside, mode=mode, tokenizer=tokenizer, seed=seed, threads=threads)
        if request is not None:
            with _progress() as report:
                evaluation = run_evaluation(dataclasses.replace(request, baseline=beside), progress=report)
    if evaluation is not None:
        evaluation = dataclasses.replace(evaluation, baseline=None if baseline is None else str(baseline))
    if scores is not None:
        scores = scores.with_baseline(baseline)
    if json_output:
        data = {} if evaluation is None else evaluation.to_dict()
        print_json(data if scores is None else {**data, "tasks": finite(scores.to_dict())})
        return
    if evaluation is not None:
        _show(evaluation)
    for line in [] if scores is None else scores.lines:
        print(line)


def _refuse_unread(tasks: TaskOptions, given: dict[str, int | None]) -> None:
    """Without a text: refuse where there are no tasks either, and options that are for texts."""
    if not tasks.named:
        raise DeltaLLMError("There is nothing to read: give a text with --text FILE, or tasks with --tasks.")
    for name, value in given.items():
        if value is not None:
            raise DeltaLLMError(f"--{name} is for texts: give one with --text FILE, or limit tasks with --limit N.")


def _show(evaluation: Evaluation) -> None:
    print_table(figures_table(evaluation))
    print_table(positions_table(evaluation))
    if evaluation.retrieval:
        print_table(retrieval_table(evaluation))
    for line in (f"Measured: {evaluation.measured}.", _how(evaluation), *evaluation.notes):
        print_note(line)


def _mode(text: str) -> Mode:
    if text not in _MODES:
        raise DeltaLLMError(f"mode is {text!r}: choose one of {', '.join(_MODES)}.")
    return cast(Mode, text)


def _depths(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise DeltaLLMError(f"depths is {text!r}: give shares from 0 to 1, separated by commas.") from None


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar on stderr; silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Reading the text", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def _how(evaluation: Evaluation) -> str:
    """How times were taken."""
    count = evaluation.threads
    threads = "ONNX Runtime's choice of threads" if count is None else f"{count} thread{'s' * (count > 1)}"
    if evaluation.speed is None:
        return f"Wall times with {threads}; decode speed was not measured."
    speed = evaluation.speed
    other = "" if evaluation.baseline_speed is None else f", the baseline's {evaluation.baseline_speed.caches}"
    return (
        f"Decode speed: the file as it is, median of {speed.steps} steps behind {speed.prompt_tokens} tokens, wall "
        f"time, {threads}, caches {speed.caches}{other}."
    )
