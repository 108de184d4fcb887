"""JSON files that the report takes numbers from: read whole, and believed only where they have the expected form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

#: Larger files are no measurements of ours.
_LARGEST_BYTES = 64 << 20


def read_object(path: Path, what: str) -> dict[str, Any]:
    """One JSON object from a file.

    Args:
        path: of the file.
        what: it is, for refusals, such as "the calibration file".

    Raises:
        DeltaLLMError: for a file that is missing, unreadable, too large, or holds something else.
    """
    if not path.is_file():
        raise DeltaLLMError(f"There is no file {path}: give the path of {what}.")
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise DeltaLLMError(f"{path} is larger than {_LARGEST_BYTES >> 20} MiB: it is not {what}.")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeltaLLMError(f"{path} cannot be read as JSON ({_one_line(error)}): give {what}.") from error
    if not isinstance(data, dict):
        raise DeltaLLMError(f"{path} holds a {type(data).__name__}, not one JSON object: give {what}.")
    return data


def number(data: Mapping[str, Any], key: str) -> float | None:
    """A finite number; None for anything else."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def section(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object within an object; empty for anything else."""
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def text(data: Mapping[str, Any], key: str, longest: int = 80) -> str | None:
    """A string that is not empty, cut to a length; None for anything else."""
    value = data.get(key)
    return value[:longest] if isinstance(value, str) and value else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
