"""Whole-number linear forms over symbolic dimensions: what lengths and positions in a mask subgraph add up to."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import onnx_ir as ir

_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d+)\s*\*\s*)?([A-Za-z_]\w*|\d+)\s*")


@dataclasses.dataclass(frozen=True)
class Affine:
    """const + Σ coefficient·symbol.

    Attributes:
        const: the constant.
        terms: (symbol, coefficient) pairs, sorted by symbol, no coefficient 0.
    """

    const: int
    terms: tuple[tuple[str, int], ...] = ()

    @staticmethod
    def symbol(name: str) -> Affine:
        """The form that is one symbol."""
        return Affine(0, ((name, 1),))

    @staticmethod
    def _of(const: int, terms: Iterable[tuple[str, int]]) -> Affine:
        total: dict[str, int] = {}
        for name, coefficient in terms:
            total[name] = total.get(name, 0) + coefficient
        return Affine(const, tuple(sorted((n, c) for n, c in total.items() if c)))

    def __add__(self, other: Affine) -> Affine:
        return Affine._of(self.const + other.const, self.terms + other.terms)

    def __neg__(self) -> Affine:
        return self.scaled(-1)

    def __sub__(self, other: Affine) -> Affine:
        return self + -other

    def scaled(self, factor: int) -> Affine:
        """Every coefficient times a factor."""
        return Affine._of(self.const * factor, ((n, c * factor) for n, c in self.terms))

    def is_constant(self) -> bool:
        """Whether no symbol is left."""
        return not self.terms

    def is_never_negative(self) -> bool:
        """Whether it is 0 or more whatever its symbols are, which are lengths: 0 or more."""
        return self.const >= 0 and all(coefficient > 0 for _, coefficient in self.terms)

    def coefficient(self, name: str) -> int:
        """The coefficient of a symbol, 0 where it does not occur."""
        return dict(self.terms).get(name, 0)

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """Replace symbols by forms. The forms' own symbols are not replaced again."""
        result = Affine(self.const)
        for name, coefficient in self.terms:
            result += values.get(name, Affine.symbol(name)).scaled(coefficient)
        return result

    def __str__(self) -> str:
        text = "".join(
            f" {'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c)}*'}{name}" for name, c in self.terms
        )
        if self.const or not self.terms:
            text += f" {'-' if self.const < 0 else '+'} {abs(self.const)}"
        return text.removeprefix(" + ") if text.startswith(" + ") else "-" + text.removeprefix(" - ")


ONE = Affine(1)


class Capped(str):
    """The symbol min(limit, length): the rows left of a table of so many, cut to a length that is not known.

    Attributes:
        limit: rows of the table.
        length: what it is cut to.
    """

    __slots__ = ("length", "limit")

    limit: Affine
    length: Affine


def capped(limit: Affine, length: Affine) -> Affine:
    """The form min(limit, length), a symbol of its own."""
    symbol = Capped(f"min({limit}, {length})")
    symbol.limit, symbol.length = limit, length
    return Affine.symbol(symbol)


def parse_dimension(text: str) -> Affine:
    """Read a dimension's name; "past + sequence" is a sum, and what cannot be read so is one symbol."""
    result, position = Affine(0), 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None or (position and not match[1]):
            return Affine.symbol(text)
        factor = (-1 if match[1] == "-" else 1) * int(match[2] or 1)
        term = Affine(int(match[3])) if match[3].isdigit() else Affine.symbol(match[3])
        result += term.scaled(factor)
        position = match.end()
    return result


def dimension(value: ir.Value, axis: int) -> Affine:
    """The length of one axis; an axis without a name gets a symbol of its own.

    Raises:
        ValueError: where the rank of the value is unknown or the axis is outside it.
    """
    shape = value.shape
    if shape is None or not -len(shape) <= axis < len(shape):
        raise ValueError(f"the shape of {value.name!r} is unknown")
    dim = shape[axis]
    if isinstance(dim, int):
        return Affine(dim)
    if dim.value is None:
        return Affine.symbol(f"{value.name}[{axis % len(shape)}]")
    return parse_dimension(dim.value)
