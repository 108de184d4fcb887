"""Raw counts of one call in standard ops: docs/spec.md section 6."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body
from deltallm_onnx.passes.functions.cache import CodedRows
from deltallm_onnx.passes.functions.lengths import Lengths

BYTES = {"float32": 4, "float16": 2}


def emit_statistics(
    body: Body,
    present_key: ir.Value,
    lengths: Lengths,
    coded: CodedRows,
    *,
    visible: ir.Value,
    held: ir.Value,
    left_out: ir.Value | None,
    granularity: str,
    cache_format: str,
) -> ir.Value:
    """int64 [Hkv,8].

    Args:
        body: where the nodes go.
        present_key: [B,Hkv,C,D], the first `total` rows.
        lengths: of the call.
        coded: of the call.
        visible: bool [B,S,C].
        held: bool [B,S,C].
        left_out: bool [B,Hq,S,C], values that v_skip leaves out, or None.
        granularity: "element" or "row".
        cache_format: "float32" or "float16".
    """
    by_row = granularity == "row"
    kv_heads, size = body.dim(present_key, 1), body.dim(present_key, 3)
    rows = body.range(body.as_scalar(body.dim(present_key, 2)))
    group = body.op("Div", body.number("num_heads"), body.number("kv_num_heads"), name="group")
    per_key = body.op("Mul", group, size, name="macs_per_key")

    repeated = _repeated(body, present_key, rows, lengths)  # [B,Hkv,C,D]
    whole = _whole_rows(body, repeated)  # int64 [B,Hkv,C], 0 or 1
    zeros = body.op("Mul", whole, size) if by_row else _sum(body, repeated, -1)
    # Counted over D in element granularity, one per row else.
    counted = whole if by_row else zeros
    is_coded = _int(
        body,
        body.op(
            "And",
            body.op("GreaterOrEqual", rows, body.unsqueeze(coded.first, 1)),
            body.op("Less", rows, body.unsqueeze(coded.last, 1)),
        ),
    )
    coded_rows = _sum(body, is_coded)
    delta_total = coded_rows if by_row else body.op("Mul", coded_rows, size)
    delta_zero = _sum(body, body.op("Mul", counted, body.unsqueeze(is_coded, 1)), 0, 2)  # [Hkv]

    read_as_held = body.op("And", visible, held)
    reads = body.unsqueeze(_sum(body, _int(body, read_as_held), 1), 1)  # [B,1,C]
    dense = body.op("Mul", per_key, _sum(body, _int(body, visible)))
    qk_skipped = body.op("Mul", group, _sum(body, body.op("Mul", reads, zeros), 0, 2))
    pv_skipped = body.op("Mul", dense, body.scalar(0))
    if by_row:
        pv_skipped = body.op("Mul", per_key, _sum(body, body.op("Mul", reads, whole), 0, 2))
    if left_out is not None:
        held_rows = body.op("Cast", whole, to=int(ir.DataType.BOOL)) if by_row else None
        alone = _left_out_alone(body, left_out, visible, read_as_held, held_rows)
        pv_skipped = body.op("Add", pv_skipped, body.op("Mul", alone, size))

    row_bytes = body.op("Mul", size, body.scalar(2 * BYTES[cache_format]))
    in_use = _sum(body, body.op("Sub", lengths.length, lengths.start))
    seen = body.reduce("ReduceMax", _int(body, visible), 1)
    columns = [
        delta_total,
        delta_zero,
        dense,
        qk_skipped,
        dense,
        pv_skipped,
        body.op("Mul", in_use, row_bytes),
        body.op("Mul", _sum(body, seen), row_bytes),
    ]
    one_each = [body.unsqueeze(body.op("Expand", column, kv_heads), 1) for column in columns]
    return body.op("Concat", *one_each, axis=1, name="statistics")


def _repeated(body: Body, present_key: ir.Value, rows: ir.Value, lengths: Lengths) -> ir.Value:
    """Elements equal to the row before, int64 [B,Hkv,C,D]; the first real row has none before it."""
    cache = body.cast(present_key, ir.DataType.FLOAT)
    first = body.slice(cache, body.ints(0), body.ints(1), 2)
    before = body.op("Concat", first, body.slice(cache, body.ints(0), body.ints(-1), 2), axis=2)
    has_one_before = body.op("Greater", rows, body.unsqueeze(lengths.start, 1))
    equal = body.op("And", body.op("Equal", cache, before), body.unsqueeze(has_one_before, 1, 3))
    return _int(body, equal)


def _whole_rows(body: Body, repeated: ir.Value) -> ir.Value:
    return body.reduce("ReduceMin", repeated, -1)


def _left_out_alone(
    body: Body, left_out: ir.Value, visible: ir.Value, read_as_held: ir.Value, held_rows: ir.Value | None
) -> ir.Value:
    """Values left out that a run does not spare already, int64 [Hkv]."""
    counted = body.op("And", left_out, body.unsqueeze(visible, 1))  # [B,Hq,S,C]
    # [B,Hq,S,C] → [B,Hkv,G,S,C]
    shape = body.op("Shape", counted)
    split = body.op(
        "Concat",
        body.slice(shape, body.ints(0), body.ints(1), 0),
        body.as_vector(body.number("kv_num_heads")),
        body.ints(-1),
        body.slice(shape, body.ints(2), body.ints(4), 0),
        axis=0,
    )
    counted = body.op("Reshape", counted, split)
    if held_rows is not None:
        in_run = body.op("And", body.unsqueeze(read_as_held, 1), body.unsqueeze(held_rows, 2))  # [B,Hkv,S,C]
        counted = body.op("And", counted, body.op("Not", body.unsqueeze(in_run, 2)))
    return _sum(body, _int(body, counted), 0, 2, 3, 4)


def _int(body: Body, condition: ir.Value) -> ir.Value:
    return body.op("Cast", condition, to=int(ir.DataType.INT64))


def _sum(body: Body, counts: ir.Value, *axes: int) -> ir.Value:
    return body.reduce("ReduceSum", counts, *axes)
