"""The progress bar of a calibration, on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deltallm_onnx.calibration.bill import bill
from deltallm_onnx.cli.output import print_note


class CalibrationProgress:
    """What `deltallm_onnx.calibration` reports, as a bar; the bill is a line of its own.

    Args:
        bar: that shows it.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("opening the model", total=None)

    def begin(self, reads: int, seconds: float) -> None:
        """Say what is to come, before it comes."""
        print_note(bill(reads, seconds))
        self._bar.update(self._task, total=reads, completed=0)

    def step(self, what: str) -> None:
        """Name the step; where there is no bar, by a line."""
        if self._bar.disable:
            print_note(what)
        self._bar.update(self._task, description=what)

    def note(self, text: str) -> None:
        """Print it."""
        print_note(text)

    def read(self, windows: int) -> None:
        """Move on."""
        self._bar.advance(self._task, windows)


@contextlib.contextmanager
def shown_progress() -> Iterator[CalibrationProgress]:
    """A bar while the block runs; a line per step where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, *times, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield CalibrationProgress(bar)
