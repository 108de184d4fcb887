"""Weights that are codes already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

#: Operators that take codes.
_QUANTISED = (
    "MatMulNBits",
    "MatMulBnb4",
    "GatherBlockQuantized",
    "QMoE",
    "DequantizeLinear",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
)


def quantised_operators(operators: Iterable[str]) -> str:
    """How many operators of a graph take codes, such as "28 MatMulNBits, 1 GatherBlockQuantized"; empty for none.

    Args:
        operators: the operator type of every node.
    """
    found = Counter(operators)
    return ", ".join(f"{found[name]} {name}" for name in _QUANTISED if found[name])
