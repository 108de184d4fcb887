"""`deltallm-onnx bench`: two models against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deltallm_onnx.bench import Measurement, Plan, Spread, bench_models, usual_pasts, write_record
from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.cli.output import print_note, print_table, status
from deltallm_onnx.errors import DeltaLLMError


def bench_command(
    model: Annotated[Path, typer.Argument(metavar="X.onnx", help="The model to judge.")],
    *,
    baseline: Annotated[Path, typer.Option(metavar="Y.onnx", help="The model it is held against.")],
    past: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Tokens in the cache before decoding [default: 256,1024,4096 as they fit]."),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,N,…", help="Threads within an operator.")] = "1,2",
    steps: Annotated[int, typer.Option(metavar="N", help="Decoded tokens per measurement.")] = 32,
    chunk: Annotated[
        int, typer.Option(metavar="N", help="Read the past in calls of so many tokens; 0 = one call.")
    ] = 0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process per model.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the record there.")] = None,
) -> None:
    """Time decode and prefill of two forms of a model, interleaved, and say what memory they take."""
    plan = Plan(
        pasts=usual_pasts((model, baseline), steps) if past is None else _counts("past", past),
        threads=_counts("threads", threads),
        steps=_at_least("steps", steps, 1),
        chunk=_at_least("chunk", chunk, 0),
        memory=memory,
    )
    if json_file is not None:
        _check_writable(json_file)  # before minutes of measuring, not after
    with status("Opening both models") as say:
        measurements, record = bench_models(model, baseline, plan, progress=say)
    if json_file is not None:
        write_record(json_file, record)
    print_table(_table(measurements))
    for name, facts in record["models"].items():
        print_note(_facts(name, facts))
    print_note("Speed-up: median over rounds of the quotient within one round, quartiles in brackets.")


def _counts(name: str, text: str) -> tuple[int, ...]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise DeltaLLMError(f"{name} is {text!r}: give whole numbers of at least 1, separated by commas.")
    return tuple(counts)


def _at_least(name: str, value: int, least: int) -> int:
    if value < least:
        raise DeltaLLMError(f"{name} is {value}: give a whole number of at least {least}.")
    return value


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise DeltaLLMError(f"{path} is a directory: name the JSON file to write.")
    if not path.parent.is_dir():
        raise DeltaLLMError(f"The folder {path.parent} does not exist: make it first, or name another file.")


def _table(measurements: Sequence[Measurement]) -> Table:
    table = Table()
    for name in (
        "threads",
        "past",
        "decode tokens/s",
        "baseline",
        "speed-up",
        "prefill tokens/s",
        "baseline",
        "speed-up",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for m in measurements:
        table.add_row(
            str(m.threads),
            str(m.past_tokens),
            *(f"{1 / spread.median:.1f}" for spread in m.decode),
            _ratio(m.decode_ratio),
            *(f"{m.past_tokens / spread.median:.0f}" for spread in m.prefill),
            _ratio(m.prefill_ratio),
        )
    return table


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}× ({spread.lower:.2f}–{spread.upper:.2f})"


def _facts(name: str, facts: Mapping[str, Any]) -> str:
    text = f"{name}: {facts['path']}, caches {facts['cache_mode']}"
    if "peak_resident_bytes" in facts:
        text += (
            f"; after {facts['memory_past_tokens']} tokens caches {byte_text(facts['kv_bytes_in_use'])} in use, "
            f"{byte_text(facts['kv_bytes_allocated'])} allocated, peak memory {byte_text(facts['peak_resident_bytes'])}"
        )
    return text
