"""The head size of a `GroupQueryAttention` node, which has no attribute for it, from everything that tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from deltallm_onnx.passes.site import NotUnderstood

#: Nodes that are passed on the way back to one whose width is known; real graphs have two.
_LOOK_BACK = 8
#: Operators that leave the last axis of their first input as it is.
_KEEPS_CHANNELS = ("Cast", "Identity", "Dropout")


def head_size_of(node: ir.Node, given: Mapping[str, ir.Value | None], num_heads: int, kv_num_heads: int) -> int:
    """D that every witness agrees on: widths of the output, query, key and value, the last axis of the caches.

    Tensors without a shape are asked through their producers: Add, Split, Reshape, MatMul and MatMulNBits tell a width.

    Args:
        node: a GroupQueryAttention node.
        given: its inputs by name.
        num_heads: Hq, at least 1.
        kv_num_heads: Hkv, at least 1.

    Raises:
        NotUnderstood: where two witnesses disagree, where a width is no multiple of its heads, where nothing tells,
            and where the keys are another layer's.
    """
    output = channels(node.outputs[0])
    query = channels(given["query"])
    if given["key"] is None and query is not None and query == output:
        raise NotUnderstood(
            f"its query of {query} channels holds no key and no value, so it attends to the keys and values of another "
            "layer, which DeltaAttention cannot share"
        )
    widths = [("output", output, num_heads)]
    if given["key"] is None:
        widths.append(("packed query", query, num_heads + 2 * kv_num_heads))
    else:
        widths += [("query", query, num_heads), ("key", channels(given["key"]), kv_num_heads)]
        widths.append(("value", channels(given["value"]), kv_num_heads))
    witnesses = [
        (f"its {what} has {width} channels for {heads} heads", _divided(what, width, heads))
        for what, width, heads in widths
        if width is not None
    ]
    witnesses += [(f"its {what} has rows of {size}", size) for what, size in _cache_rows(node, given)]
    if not witnesses:
        raise NotUnderstood("its head size is not known: no shape and no weight tells it")
    (told, size), *others = witnesses
    for other, different in others:
        if different != size:
            raise NotUnderstood(f"{told}, so they are of size {size}, but {other}, so they are of size {different}")
    return size


def channels(value: ir.Value | None, look_back: int = _LOOK_BACK) -> int | None:
    """The length of the last axis of a tensor; None where neither its shape nor its producers tell."""
    if value is None:
        return None
    last = value.shape[-1] if value.shape is not None and len(value.shape) else None
    if isinstance(last, int):
        return last
    node = value.producer()
    if node is None or look_back == 0:
        return None
    return _written(node, value, look_back - 1)


def _written(node: ir.Node, value: ir.Value, look_back: int) -> int | None:
    """Channels of an output, by the node that writes it."""
    found: int | None = None
    match node.domain or "ai.onnx", node.op_type:
        case "com.microsoft", "MatMulNBits":
            found = _whole_number(node, "N", None)
        case "ai.onnx", "MatMul":
            weight = node.inputs[1]
            if weight is not None and weight.shape is not None and len(weight.shape) > 1:
                found = channels(weight, look_back)
        case "ai.onnx", "Split":
            if _whole_number(node, "axis", 0) in (-1, 2):
                found = _constant_entry(node, 1, node.outputs.index(value))
        case "ai.onnx", "Reshape":
            found = _constant_entry(node, 1, -1)
        case "ai.onnx", "Add":
            operands = {channels(operand, look_back) for operand in node.inputs} - {None, 1}
            found = operands.pop() if len(operands) == 1 else None
        case "ai.onnx", name if name in _KEEPS_CHANNELS:
            found = channels(node.inputs[0], look_back)
    return found


def _constant_entry(node: ir.Node, place: int, entry: int) -> int | None:
    """One positive entry of a constant input."""
    value = node.inputs[place] if len(node.inputs) > place else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    # Weights may lie in another file: nothing of that is to be read here.
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or len(tensor.shape) != 1:
        return None
    entries = tensor.numpy().tolist()
    return int(entries[entry]) if -len(entries) <= entry < len(entries) and entries[entry] > 0 else None


def _whole_number(node: ir.Node, name: str, default: int | None) -> int | None:
    value = node.attributes[name].value if name in node.attributes else default
    return value if isinstance(value, int) else None


def _divided(what: str, width: int, heads: int) -> int:
    if width <= 0 or width % heads:
        raise NotUnderstood(f"its {what} has {width} channels, which {heads} heads do not share evenly")
    return width // heads


def _cache_rows(node: ir.Node, given: Mapping[str, ir.Value | None]) -> Iterator[tuple[str, int]]:
    caches = {name: given[name] for name in ("past_key", "past_value")}
    caches |= dict(zip(("present_key", "present_value"), node.outputs[1:3], strict=False))
    for name, cache in caches.items():
        if cache is not None and cache.shape is not None and len(cache.shape) == 4:
            size = cache.shape[3]
            if isinstance(size, int):
                yield name, size
