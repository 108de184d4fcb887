"""Reads the files that hold a task's items: JSON lines, or SQuAD's one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

#: The largest file of items: every task here has far smaller ones, and all of it is held in memory.
MAX_BYTES = 512 << 20

Row = dict[str, Any]


def read_json_lines(path: Path) -> list[Row]:
    """One JSON object per line; empty lines are skipped.

    Raises:
        DeltaLLMError: for a file that cannot be read, is too large or holds nothing, and for a line that is no object.
    """
    rows = []
    # Not splitlines: JSON has line separators of other scripts within its strings.
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeltaLLMError(
                f"{path}, line {number} is not JSON ({error}): one object per line is needed."
            ) from error
        if not isinstance(row, dict):
            raise DeltaLLMError(f"{path}, line {number} holds a {type(row).__name__}: one JSON object is needed.")
        rows.append(row)
    if not rows:
        raise DeltaLLMError(f"{path} holds no item: give at least one JSON object on a line of its own.")
    return rows


def read_json_object(path: Path) -> Row:
    """The one JSON object that a file holds; refusals as in `read_json_lines`."""
    try:
        data = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise DeltaLLMError(f"{path} is not JSON ({error}): give one JSON object.") from error
    if not isinstance(data, dict):
        raise DeltaLLMError(f"{path} holds a {type(data).__name__}: one JSON object is needed.")
    return data


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, empty ones left out."""
    return [line.strip() for line in _read(path).splitlines() if line.strip()]


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DeltaLLMError(f"{path} has {size} bytes: give a file of at most {MAX_BYTES}.")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DeltaLLMError(f"{path} cannot be read as text ({error}): give a file of JSON lines.") from error
