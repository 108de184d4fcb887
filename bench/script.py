"""What the scripts of this folder begin and end with."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from deltallm_onnx.errors import DeltaLLMError

#: Columns of tables that no terminal limits.
_FILE_WIDTH = 150


def script_parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring.

    Args:
        module: as `python -m` takes it.
        doc: its docstring.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def check_record_folder(folder: Path | None) -> None:
    """Refuse a folder that no record can be written to, before minutes of measuring.

    Raises:
        DeltaLLMError: where it is not there.
    """
    if folder is not None and not folder.is_dir():
        raise DeltaLLMError(f"There is no folder {folder}: make it first, or give another --record.")


def table_console() -> Console:
    """Where tables go: as wide as the terminal, or as a page."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


@contextmanager
def refusals() -> Iterator[None]:
    """A refusal is one sentence on stderr and exit code 2."""
    try:
        yield
    except DeltaLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
