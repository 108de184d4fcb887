"""Numbers that a graph holds whatever it is fed, and how it spells the standard domain."""

from __future__ import annotations

import onnx_ir as ir

#: Both spellings of the domain of the standard operators.
STANDARD_DOMAINS = ("", "ai.onnx")


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """What an initializer or a Constant node holds; None for anything that a caller can feed.

    An initializer that is a graph input too is only a default.
    """
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def holds_only(value: ir.Value | None, number: float) -> bool:
    """Whether a value is a constant of one element, and that is the number."""
    tensor = constant_of(value)
    return tensor is not None and tensor.size == 1 and bool(tensor.numpy().reshape(-1)[0] == number)
