"""Lines that say the same about several layers become one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: A number that is a part of a dotted, slashed or underscored name: a layer. Attribute values and shapes are not.
_INDEX = re.compile(r"(?<=[A-Za-z][./_])\d+(?![A-Za-z0-9])")
#: Most numbers listed one by one where they are not consecutive.
_LISTED = 6


class Line(NamedTuple):
    """A line and how many it stands for."""

    text: str
    times: int


def collapse(lines: Iterable[str]) -> list[Line]:
    """Merge lines that differ only in the numbers inside names, in the order of their first appearance.

    Each number becomes the range of all: `a.0.b`, `a.1.b`, `a.2.b` → `a.{0..2}.b`, count 3.
    """
    groups: dict[str, list[list[int]]] = {}
    for line in map(_printable, lines):
        groups.setdefault(_INDEX.sub("\0", line), []).append([int(n) for n in _INDEX.findall(line)])
    merged = []
    for template, numbers in groups.items():
        columns = iter([_range_text(column) for column in zip(*numbers, strict=True)])
        merged.append(Line(re.sub("\0", lambda _: next(columns), template), len(numbers)))  # noqa: B023 -- used at once
    return merged


def _range_text(numbers: Sequence[int]) -> str:
    distinct = sorted(set(numbers))
    low, high = distinct[0], distinct[-1]
    if low == high:
        return str(low)
    if high - low == len(distinct) - 1:
        return f"{{{low}..{high}}}"
    if len(distinct) <= _LISTED:
        return f"{{{','.join(map(str, distinct))}}}"
    return f"{{{len(distinct)} of {low}..{high}}}"


def _printable(text: str) -> str:
    """Names are free text: none may break a line or reach the terminal as a control sequence."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
