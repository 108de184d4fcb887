"""The lengths rules of docs/spec.md section 7 in standard ops."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Row numbers of the cache.

    Attributes:
        past: int64 [B], row of the first new token.
        start: int64 [B], first real token.
        length: int64 [B], L_b.
        past_of_all: int64 [1], the past where it is the same for all rows by construction, else None.
        total: int64 [1], rows this call speaks about.
        capacity: int64 [1], rows of past_key; zero without one.
    """

    past: ir.Value
    start: ir.Value
    length: ir.Value
    past_of_all: ir.Value | None
    total: ir.Value
    capacity: ir.Value


def emit_lengths(body: Body, inputs: Mapping[str, ir.Value | None], query: ir.Value) -> Lengths:
    """Read the lengths from whichever inputs are there; what contradicts itself stops the run.

    Args:
        body: where the nodes go.
        inputs: the operator's inputs by name.
        query: [B,S,…].
    """
    batch, tokens = body.dim(query, 0, "batch"), body.dim(query, 1, "new_tokens")
    past_key, mask, seqlens = inputs["past_key"], inputs["attention_mask"], inputs["seqlens_k"]
    capacity = body.ints(0) if past_key is None else body.dim(past_key, 2, "past_capacity")
    if seqlens is not None:
        return _from_seqlens(body, inputs, tokens, capacity)
    if mask is not None:
        return _from_mask(body, mask, tokens, batch, capacity)
    total = body.op("Add", capacity, tokens, name="total")
    return Lengths(
        past=body.op("Expand", capacity, batch, name="past_length"),
        start=body.op("Expand", body.ints(0), batch, name="start"),
        length=body.op("Expand", total, batch, name="length"),
        past_of_all=capacity,
        total=total,
        capacity=capacity,
    )


def _from_mask(body: Body, mask: ir.Value, tokens: ir.Value, batch: ir.Value, capacity: ir.Value) -> Lengths:
    total = body.dim(mask, 1, "total")
    ones, columns = _ones(body, mask, total)
    first = _first_one(body, ones, columns, total)
    last = body.op("Where", ones, body.op("Add", columns, body.scalar(1)), body.scalar(0))
    length = body.reduce("ReduceMax", last, 1, name="length")
    # A row without any one: first = T, length = 0.
    start = body.op("Min", first, length)
    count = body.reduce("ReduceSum", body.op("Cast", ones, to=int(ir.DataType.INT64)), 1)
    holes = body.op("Sub", body.op("Sub", length, start), count)
    has_hole = body.op("Greater", body.reduce("ReduceMax", holes), body.scalar(0))
    start = body.op("Add", start, body.refuse_if(has_hole, "attention_mask has a zero between ones"), name="start")
    past = body.op("Sub", total, tokens)
    past = body.op("Add", past, _refuse_past(body, past, capacity), name="past_of_all")
    return Lengths(
        past=body.op("Expand", past, batch, name="past_length"),
        start=start,
        length=length,
        past_of_all=past,
        total=total,
        capacity=capacity,
    )


def _from_seqlens(body: Body, inputs: Mapping[str, ir.Value | None], tokens: ir.Value, capacity: ir.Value) -> Lengths:
    seqlens, mask, total_length = (inputs[name] for name in ("seqlens_k", "attention_mask", "total_sequence_length"))
    total = body.op("Reshape", body.op("Cast", total_length, to=int(ir.DataType.INT64)), body.ints(1), name="total")
    length = body.op("Add", body.op("Cast", seqlens, to=int(ir.DataType.INT64)), body.scalar(1), name="length")
    outside = body.op("Or", body.op("Less", length, body.scalar(1)), body.op("Greater", length, total))
    any_outside = body.op("Cast", outside, to=int(ir.DataType.INT64))
    any_outside = body.op("Greater", body.reduce("ReduceMax", any_outside), body.scalar(0))
    length = body.op(
        "Add", length, body.refuse_if(any_outside, "seqlens_k is outside 0 to total_sequence_length - 1"), name="length"
    )
    # As many new tokens as there are at all: a first prompt, whose past is empty however short a row is.
    prompt = body.op("Equal", total, tokens, name="is_prompt")
    past = body.op("Where", prompt, body.scalar(0), body.op("Sub", length, tokens))
    past = body.op("Add", past, _refuse_past(body, past, capacity), name="past_length")
    if mask is None:
        start = body.op("Mul", length, body.scalar(0), name="start")
    else:
        mask_total = body.dim(mask, 1)
        ones, columns = _ones(body, mask, mask_total)
        start = body.op("Min", _first_one(body, ones, columns, mask_total), length, name="start")
    return Lengths(past=past, start=start, length=length, past_of_all=None, total=total, capacity=capacity)


def _ones(body: Body, mask: ir.Value, total: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Ones of the mask, bool [B,T], and the column numbers [T]."""
    return body.op("Cast", mask, to=int(ir.DataType.BOOL)), body.range(body.as_scalar(total))


def _first_one(body: Body, ones: ir.Value, columns: ir.Value, total: ir.Value) -> ir.Value:
    """int64 [B]; T for a row without any one."""
    return body.reduce("ReduceMin", body.op("Where", ones, columns, total), 1)


def _refuse_past(body: Body, past: ir.Value, capacity: ir.Value) -> ir.Value:
    """Zero, unless a row's past is negative or longer than the cache that holds it."""
    least, most = body.reduce("ReduceMin", past), body.reduce("ReduceMax", past)
    wrong = body.op("Or", body.op("Less", least, body.scalar(0)), body.op("Greater", most, body.as_scalar(capacity)))
    return body.refuse_if(wrong, "past_key does not hold the past length")
