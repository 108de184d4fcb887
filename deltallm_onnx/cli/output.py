"""Where the commands print: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

#: Columns of a table that no terminal limits.
_FILE_WIDTH = 160


def print_error(sentence: str) -> None:
    """One line on stderr."""
    print("error:", " ".join(sentence.split()), file=sys.stderr)


def print_note(text: str) -> None:
    """A line on stderr that is no part of the result."""
    print(text, file=sys.stderr)


def print_json(data: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(table: Table, *, to_stderr: bool = False) -> None:
    """A table on stdout, or on stderr beside a result."""
    stream = sys.stderr if to_stderr else sys.stdout
    console = Console(file=stream, width=None if stream.isatty() else _FILE_WIDTH)
    console.print(table)


@contextlib.contextmanager
def status(text: str, *, lines: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner on stderr while something takes long.

    Args:
        text: beside the spinner.
        lines: where stderr is no terminal, whether every later text is a line of it; otherwise nothing is shown there.

    Yields:
        A function that changes the text beside the spinner.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield print_note if lines else lambda _text: None
        return
    with console.status(text) as spinner:
        yield spinner.update
