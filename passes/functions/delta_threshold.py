"""DeltaThreshold in standard ops: the hold transform of docs/spec.md section 2 as a Scan over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes.functions.body import Body, make_function

INPUTS = ("key", "reference", "threshold", "row_weight", "transmit")

DOC = """k̂_t = k̂_{t−1} where the change is within θ, else k_t; Δ_t = k̂_t − k̂_{t−1}.
Inputs: key [B,Hkv,N,D], reference [B,Hkv,D], threshold [Hkv] or [Hkv,D], row_weight [Hkv,D], transmit [B,N].
Outputs: held_key and delta [B,Hkv,N,D]."""


def delta_threshold_function(
    *, granularity: str, row_rule: str, row_weight: bool, transmit: bool, opset_version: int
) -> ir.Function:
    """The function body of the operator, for nodes of one granularity and rule that pass the optional inputs said."""
    body = Body()
    count = 5 if transmit else 4 if row_weight else 3
    inputs = [ir.Value(name=name) for name in INPUTS[:count]]
    for value in inputs:
        body.unique(str(value.name))
    outputs = emit_delta_threshold(
        body,
        *inputs[:3],
        row_weight=inputs[3] if row_weight else None,
        transmit=inputs[4] if transmit else None,
        granularity=granularity,
        row_rule=row_rule,
    )
    return make_function(
        "DeltaThreshold",
        body,
        inputs,
        outputs,
        attributes=("granularity", "row_rule"),
        opset_version=opset_version,
        doc_string=DOC,
    )


def emit_delta_threshold(
    body: Body,
    key: ir.Value,
    reference: ir.Value,
    threshold: ir.Value,
    *,
    row_weight: ir.Value | None,
    transmit: ir.Value | None,
    granularity: str,
    row_rule: str,
) -> Sequence[ir.Value]:
    """Held_key and delta, [B,Hkv,N,D] in the key's type."""
    kind = ir.DataType.DOUBLE if granularity == "row" else ir.DataType.FLOAT
    # [Hkv] → [Hkv,1]; [Hkv,D] stays.
    theta_shape = body.op("Concat", body.dim(threshold, 0), body.ints(-1), axis=0)
    theta = body.cast(body.op("Reshape", threshold, theta_shape, name="theta"), kind)
    weight = None if row_weight is None else body.cast(row_weight, kind, name="weight")

    def step(previous: ir.Value, row: ir.Value, forced: ir.Value | None = None) -> list[ir.Value]:
        if granularity == "row":
            keep = _row_change_is_small(body, row, previous, theta, weight=weight, rule=row_rule)
        else:
            change = body.op("Abs", body.op("Sub", row, previous), name="change")
            keep = body.op("LessOrEqual", change, theta, name="keep")
        if forced is not None:
            # LessOrEqual is false for a NaN, so a NaN is transmitted too.
            keep = body.op("And", keep, body.op("Not", body.unsqueeze(forced, 1, 2)))
        reference_next = body.op("Where", keep, previous, row, name="reference_next")
        return [
            reference_next,
            body.op("Identity", reference_next, name="held_row"),
            body.op("Sub", reference_next, previous, name="delta_row"),
        ]

    step_inputs = {"previous": (ir.DataType.FLOAT, 3), "row": (ir.DataType.FLOAT, 3)}
    if transmit is not None:
        step_inputs["forced"] = (ir.DataType.BOOL, 1)
    # ONNX Runtime's Scan ends the process on a sequence of length zero, which a call that codes nothing would be: the
    # reference goes first, as a row that changes nothing, and is cut off again.
    reference = body.cast(reference, ir.DataType.FLOAT)
    scan_inputs = [body.op("Concat", body.unsqueeze(reference, 2), body.cast(key, ir.DataType.FLOAT), axis=2)]
    if transmit is not None:
        first = body.op("Expand", body.op("Cast", body.ints(0), to=int(ir.DataType.BOOL)), body.dim(key, 0))
        scan_inputs.append(body.op("Concat", body.unsqueeze(first, 1), transmit, axis=1))
    _, *rows = body.ops(
        "Scan",
        [reference, *scan_inputs],
        ("last_reference", "reference_and_held", "zero_and_delta"),
        body=body.subgraph("hold_one_token", step_inputs, step),
        num_scan_inputs=len(scan_inputs),
        scan_input_axes=[2, 1][: len(scan_inputs)],
        scan_output_axes=[2, 2],
    )
    own_rows = [body.slice(x, body.ints(1), body.ints(2**62), 2) for x in rows]
    return [body.op("CastLike", x, key, name=name) for x, name in zip(own_rows, ("held_key", "delta"), strict=True)]


def _row_change_is_small(
    body: Body, row: ir.Value, previous: ir.Value, theta: ir.Value, *, weight: ir.Value | None, rule: str
) -> ir.Value:
    """‖w∘(k − k̂)‖₂ ≤ θ·ρ in double precision, bool [B,Hkv,1]."""

    def norm(x: ir.Value, name: str) -> ir.Value:
        weighted = x if weight is None else body.op("Mul", weight, x)
        return body.op("Sqrt", body.reduce("ReduceSum", body.op("Mul", weighted, weighted), -1, keepdims=1), name=name)

    k = body.op("Cast", row, to=int(ir.DataType.DOUBLE))
    change = norm(body.op("Sub", k, body.op("Cast", previous, to=int(ir.DataType.DOUBLE))), "change")
    bound = body.op("Mul", theta, norm(k, "rho"), name="bound") if rule == "relative" else theta
    return body.op("LessOrEqual", change, bound, name="keep")
