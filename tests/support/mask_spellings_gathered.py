"""Padding masks picked entry by entry, and what exporters write around that: lengths as shapes, Expand, positions."""

from __future__ import annotations

from onnx import TensorProto, helper
from support.attention_models import GraphBuilder

BOOL, INT64 = TensorProto.BOOL, TensorProto.INT64


def expanded(g: GraphBuilder, value: str, shape: str) -> str:
    """Expand as TorchScript writes it, where −1 keeps a length."""
    ones = g.node("ConstantOfShape", g.node("Shape", shape), value=helper.make_tensor("one", INT64, [1], [1]))
    keep = g.node("Equal", shape, g.node("Mul", ones, -1))
    return g.node("Expand", value, g.node("Where", keep, ones, shape))


def listed(g: GraphBuilder, *lengths: str | int) -> str:
    """Lengths as a shape."""
    parts = [g.constant([x]) if isinstance(x, int) else g.node("Unsqueeze", x, [0]) for x in lengths]
    return g.node("Concat", *parts, axis=0)


def counted(g: GraphBuilder, length: str, axes: list[int]) -> str:
    return g.node("Unsqueeze", g.node("Range", 0, length, 1), axes)


def flat_padding(g: GraphBuilder, *, width: str = "", swapped: bool = False, offset: int = 0) -> str:
    """padding[b, j] as TorchScript indexes, [B, 1, 1, T]."""
    padding = g.node("Cast", "attention_mask", to=BOOL)
    rows = counted(g, g.length("input_ids", 0), [1, 2, 3])
    keys = counted(g, g.node("Add", g.length("past_key_values.0.key", 2), g.length("input_ids", 1)), [0, 1, 2])
    if offset:
        keys = g.node("Add", keys, offset)
    width = width or g.node("Gather", g.node("Shape", padding), [1], axis=0)
    if swapped:
        rows, keys = keys, rows
    index = g.node("Add", keys, g.node("Mul", rows, width))
    picked = g.node("Gather", g.node("Flatten", padding, axis=2), index, axis=0)
    return g.node("Reshape", g.node("Reshape", picked, [-1]), g.node("Shape", index))


def gather_nd_padding(g: GraphBuilder, *, swapped: bool = False, offset: int = 0) -> str:
    """padding[b, j] as torch.export indexes, [B, 1, 1, T]."""
    past, new = g.length("past_key_values.0.key", 2), g.length("input_ids", 1)
    rows = counted(g, g.length("past_key_values.0.key", 0), [1, 2, 3])
    keys = counted(g, g.node("Add", past, new), [0, 1, 2])
    if offset:
        keys = g.node("Add", keys, offset)
    shape = g.node("Shape", g.node("Max", rows, keys))
    pair = [g.node("Unsqueeze", g.node("Expand", x, shape), [-1]) for x in (rows, keys)]
    index = g.node("Concat", *(pair[::-1] if swapped else pair), axis=-1)
    return g.node("GatherND", g.node("Cast", "attention_mask", to=BOOL), index)


def gathered_columns(g: GraphBuilder) -> str:
    """padding[:, j], [B, 1, 1, T]."""
    keys = g.node("Range", 0, g.length("attention_mask", 1), 1)
    columns = g.node("Gather", g.node("Cast", "attention_mask", to=BOOL), keys, axis=1)
    return g.node("Unsqueeze", columns, [1, 2])


def gathered_elements(g: GraphBuilder, *, rows: int | None = None) -> str:
    """padding.gather(1, j), [B, 1, 1, T]."""
    keys = counted(g, g.length("attention_mask", 1), [0])
    shape = g.node("Shape", "attention_mask") if rows is None else listed(g, rows, g.length("attention_mask", 1))
    index = g.node("Expand", keys, shape)
    columns = g.node("GatherElements", g.node("Cast", "attention_mask", to=INT64), index, axis=1)
    return g.node("Unsqueeze", g.node("Cast", columns, to=BOOL), [1, 2])
