"""Rotary position embedding in standard ops, with GroupQueryAttention's meaning."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body
from deltallm_onnx.passes.functions.lengths import Lengths


def emit_positions(body: Body, lengths: Lengths, position_ids: ir.Value | None, query: ir.Value) -> ir.Value:
    """Row of the cos and sin caches per new token, int64 [B,S]; 0 for padding, whatever position_ids says there."""
    tokens = body.range(body.as_scalar(body.dim(query, 2)))
    row = body.op("Add", body.unsqueeze(lengths.past, 1), tokens)
    start = body.unsqueeze(lengths.start, 1)
    is_real = body.op(
        "And", body.op("GreaterOrEqual", row, start), body.op("Less", row, body.unsqueeze(lengths.length, 1))
    )
    positions = body.op("Sub", row, start) if position_ids is None else position_ids
    return body.op("Where", is_real, positions, body.scalar(0), name="positions")


def emit_rotary(
    body: Body, x: ir.Value, positions: ir.Value, cos: ir.Value, sin: ir.Value, *, interleaved: bool, name: str
) -> ir.Value:
    """Rotate the first 2·R channels of x, float32 [B,H,S,D], by caches [max positions,R].

    The products and sums stay operators of their own, so that each is rounded.
    """
    pairs = body.dim(cos, 1)
    rotated = body.op("Mul", pairs, body.scalar(2))
    if interleaved:
        first, second = (_every_second(body, x, at, rotated) for at in (0, 1))
    else:
        first = body.slice(x, body.ints(0), pairs, 3)
        second = body.slice(x, pairs, rotated, 3)
    cosine, sine = (body.unsqueeze(body.op("Gather", cache, positions, axis=0), 1) for cache in (cos, sin))
    one = body.op("Sub", body.op("Mul", first, cosine), body.op("Mul", second, sine))
    other = body.op("Add", body.op("Mul", second, cosine), body.op("Mul", first, sine))
    if interleaved:
        paired = body.op("Concat", body.unsqueeze(one, 4), body.unsqueeze(other, 4), axis=4)
        turned = [body.op("Reshape", paired, body.op("Concat", body.ints(0, 0, 0), rotated, axis=0))]
    else:
        turned = [one, other]
    rest = body.slice(x, rotated, body.ints(2**62), 3)
    result = body.op("Concat", *turned, rest, axis=3, name=name)
    result.dtype = ir.DataType.FLOAT
    return result


def _every_second(body: Body, x: ir.Value, first: int, end: ir.Value) -> ir.Value:
    return body.op("Slice", x, body.ints(first), end, body.ints(3), body.ints(2))
