"""Numbers as they stand in the page: each taken from the report's JSON by its path, and written in one of few forms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from deltallm_onnx.byte_text import byte_text

_VISIBLE = {" ": "␣", "\n": "⏎", "\r": "⏎", "\t": "⇥"}
#: Between a number and its unit.
_GAP = "\u00a0"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number, or a text, of the report's data.

    Attributes:
        path: keys and indices with full stops between them, such as "quality.by_position.0.kl".
        value: what stands there.
        text: how it is shown.
    """

    path: str
    value: Any
    text: str


def at(data: Mapping[str, Any], path: str) -> Any:
    """What stands at a path.

    Raises:
        KeyError: where there is nothing.
    """
    found: Any = data
    for key in path.split("."):
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


def cell(data: Mapping[str, Any], path: str, form: str) -> Cell:
    """A number of the data in one of FORMS; a dash where the data have None."""
    value = at(data, path)
    return Cell(path, value, "–" if value is None else FORMS[form](value))


def token_text(token: str) -> str:
    """A token with its blanks and line ends visible."""
    shown = "".join(_VISIBLE.get(character, character) for character in token)
    return shown or "(no text)"


def _digits(value: float) -> str:
    """Three significant digits, without an exponent where it reads well without."""
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace(",", "\u202f")
    return f"{value:.2e}"


#: Form → how it is written.
FORMS: dict[str, Callable[[Any], str]] = {
    "count": lambda value: f"{value:,}".replace(",", "\u202f"),
    "digits": _digits,
    "share": lambda value: f"{100 * value:.1f}{_GAP}%",
    "fine share": lambda value: f"{100 * value:.3g}{_GAP}%",
    "change": lambda value: f"{100 * value:+.2f}{_GAP}%".replace("-", "−"),
    "bytes": lambda value: byte_text(value).replace(" ", _GAP),
    "plain bytes": lambda value: f"{value:,.1f}".removesuffix(".0").replace(",", "\u202f") + f"{_GAP}B",
    "seconds": lambda value: f"{_digits(value)}{_GAP}s",
    "milliseconds": lambda value: f"{_digits(value)}{_GAP}ms",
    "speed": lambda value: f"{_digits(value)}{_GAP}tokens/s",
    "times": lambda value: f"{_digits(value)}{_GAP}×",
    "text": str,
    "token": token_text,
}
