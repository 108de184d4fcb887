"""What every matcher asks of an operator's cache and attributes."""

from __future__ import annotations

import math

import onnx_ir as ir

from deltallm_onnx.passes.site import NotUnderstood

#: How ONNX shape inference begins the names that it invents for lengths it does not know.
_INVENTED = "unk__"
#: Element types DeltaAttention computes with; it sums in float32 for both.
ACTIVATION_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def present_outputs(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Outputs 1 and 2.

    Raises:
        NotUnderstood: where they are missing.
    """
    if len(node.outputs) < 3 or not node.outputs[1].name or not node.outputs[2].name:
        raise NotUnderstood("it has no present_key and present_value outputs, so nothing is cached")
    return node.outputs[1], node.outputs[2]


def check_cache(node: ir.Node, past: ir.Value, present: ir.Value, what: str) -> None:
    """The rewrite changes what a cache holds and its type, so nobody else may look into it.

    Raises:
        NotUnderstood: where somebody does, or where the cache is not an input and output of the graph.
    """
    if not past.is_graph_input() or past.is_initializer():
        raise NotUnderstood(f"its past_{what} {past.name!r} is not a graph input")
    if past.is_graph_output():
        raise NotUnderstood(f"its past_{what} {past.name!r} is also a graph output")
    if not present.is_graph_output():
        raise NotUnderstood(f"its present_{what} {present.name!r} is not a graph output")
    for value in (past, present):
        others = {user.op_type for user, _ in value.uses() if user is not node and user.op_type != "Shape"}
        if others:
            raise NotUnderstood(f"its cache {value.name!r} is also read by {', '.join(sorted(others))}")
    if sum(user is node for user, _ in past.uses()) > 1:
        raise NotUnderstood(f"it reads {past.name!r} as past key and as past value")


def cache_sizes(past_key: ir.Value, past_value: ir.Value) -> tuple[int, int]:
    """Hkv and D of the caches [B, Hkv, P, D].

    Raises:
        NotUnderstood: where they are unknown or differ between keys and values.
    """
    keys, values = _sizes(past_key, "past_key"), _sizes(past_value, "past_value")
    if keys != values:
        raise NotUnderstood(
            f"its keys are {keys[0]} heads of {keys[1]} and its values {values[0]} of {values[1]}; "
            "DeltaAttention takes one head count and one size for both"
        )
    return keys


def declared_heads(past: ir.Value, name: str) -> int | None:
    """Hkv of a cache [B, Hkv, P, D]; None where it is no number. Raises NotUnderstood for another number of axes."""
    if past.shape is None:
        return None
    _check_rank(past, name)
    heads = past.shape[1]
    return heads if isinstance(heads, int) else None


def check_heads(num_heads: int, kv_num_heads: int, head_size: int | None = None) -> None:
    """Refuse head counts that do not divide. Raises NotUnderstood."""
    if min(num_heads, kv_num_heads, 1 if head_size is None else head_size) <= 0 or num_heads % kv_num_heads:
        size = "" if head_size is None else f" of size {head_size}"
        raise NotUnderstood(f"it has {num_heads} query heads for {kv_num_heads} key/value heads{size}")


def check_tensor(name: str, tensor: ir.Value, sizes: dict[int, int]) -> None:
    """Refuse a tensor of another type, or of another size along an axis whose size is known. Raises NotUnderstood."""
    if tensor.dtype not in ACTIVATION_TYPES:
        raise NotUnderstood(f"its {name} is of type {tensor.dtype}; DeltaAttention takes FLOAT and FLOAT16")
    if tensor.shape is None:
        return
    if len(tensor.shape) <= max(sizes):
        raise NotUnderstood(f"its {name} has {len(tensor.shape)} axes")
    for axis, size in sizes.items():
        found = tensor.shape[axis]
        if isinstance(found, int) and found != size:
            raise NotUnderstood(f"its {name} has {found} along axis {axis} where {size} are needed")


def check_new_tokens(name: str, tensor: ir.Value, query: ir.Value, axis: int) -> None:
    """Refuse cross attention, which has as many new keys as it likes.

    Lengths without a name, or with one that shape inference invented, are left to the operator's own check.

    Raises:
        NotUnderstood: with the two lengths.
    """
    if tensor.shape is None or query.shape is None:
        return
    tokens, queries = tensor.shape[axis], query.shape[axis]
    if tokens != queries and is_named(tokens) and is_named(queries):
        raise NotUnderstood(f"its query has {queries} new tokens and its {name} {tokens}")


def check_batch(query: ir.Value, past: ir.Value) -> None:
    """Refuse a query that is broadcast to the batch of its cache; as `check_new_tokens`. Raises NotUnderstood."""
    if query.shape is None or past.shape is None:
        return
    rows, cached = query.shape[0], past.shape[0]
    if rows != cached and is_named(rows) and is_named(cached):
        raise NotUnderstood(f"its query has the batch {rows} and its cache {past.name!r} the batch {cached}")


def narrows(cast: ir.Node, dtype: ir.DataType | None) -> bool:
    """Whether a Cast to a float type loses digits that a type has."""
    target = ir.DataType(cast.attributes["to"].as_int())
    return dtype is None or target.bitwidth < dtype.bitwidth


def is_named(size: int | ir.SymbolicDim) -> bool:
    """Whether a length is a number, or has a name that the model gave it."""
    return isinstance(size, int) or (size.value is not None and not size.value.startswith(_INVENTED))


def required(value: ir.Value | None, name: str) -> ir.Value:
    """An input that must be there. Raises NotUnderstood."""
    if value is None:
        raise NotUnderstood(f"it has no {name}")
    return value


def rank(value: ir.Value, what: str) -> int:
    """The number of axes. Raises NotUnderstood where it is not known."""
    if value.shape is None:
        raise NotUnderstood(f"the shape of its {what} {value.name!r} is not known")
    return len(value.shape)


def fixed_size(value: ir.Value, axis: int, what: str) -> int:
    """The length of an axis. Raises NotUnderstood where it is not a number."""
    size = value.shape[axis] if value.shape is not None and axis < len(value.shape) else None
    if not isinstance(size, int):
        raise NotUnderstood(f"{what} (axis {axis} of {value.name!r}) is {size}, not a fixed number")
    return size


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An attribute or its default. Raises NotUnderstood for one of another type."""
    if name not in node.attributes:
        return default
    value = node.attributes[name].value
    if not isinstance(value, int):
        raise NotUnderstood(f"its attribute {name} is {value!r} instead of a whole number")
    return value


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """An attribute or its default. Raises NotUnderstood for infinities, NaN and other types."""
    value = node.attributes[name].value if name in node.attributes else default
    if not isinstance(value, float | int) or not math.isfinite(value):
        raise NotUnderstood(f"its {name} is {value!r}")
    return float(value)


def _check_rank(past: ir.Value, name: str) -> None:
    if rank(past, name) != 4:
        raise NotUnderstood(f"its {name} has {rank(past, name)} axes, not [batch, heads, past, head size]")


def _sizes(past: ir.Value, name: str) -> tuple[int, int]:
    _check_rank(past, name)
    return fixed_size(past, 1, f"the heads of its {name}"), fixed_size(past, 3, f"the head size of its {name}")
