"""Walk back from the keys or values that attention reads to the Concat of past and new ones outside of it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.affine import Affine, dimension
from deltallm_onnx.passes.axes import FOLLOWED, Axes, follow
from deltallm_onnx.passes.constants import STANDARD_DOMAINS
from deltallm_onnx.passes.head_expansion import HEAD
from deltallm_onnx.passes.limits import LONGEST_CHAIN
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.scalar_scale import scale_factor
from deltallm_onnx.passes.site import NotUnderstood

BATCH, TOKEN, CHANNEL = "batch", "token", "channel"

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclasses.dataclass(frozen=True)
class CacheRead:
    """How keys or values come from their cache.

    Attributes:
        past: graph input [B, Hkv, P, D].
        new: [B, Hkv, S, D].
        concat: of both.
        present: graph output [B, Hkv, P+S, D], what the Concat makes.
        axes: how the tensor that attention reads lies, by the axes "batch", "head", "token" and "channel" of `present`.
        scale: the product of the numbers it was multiplied by on the way.
        path: the nodes on the way, the one that reads `present` first.
    """

    past: ir.Value
    new: ir.Value
    concat: ir.Node
    present: ir.Value
    axes: Axes
    scale: float
    path: tuple[ir.Node, ...]


def read_cache(value: ir.Value, what: str, interpreter: MaskInterpreter) -> CacheRead:
    """Understand where keys or values come from.

    Matched:

        past (graph input) ─┐
        new ────────────────┴─ Concat(axis 2) ─▶ present (graph output) ─▶ Transpose | Reshape | Unsqueeze | Squeeze |
                                                 Expand | Tile | Cast | Mul or Div by a number, in any order ─▶ value

    Args:
        value: what the attention multiplies with.
        what: "key" or "value", for the reason.
        interpreter: evaluates lengths.

    Raises:
        NotUnderstood: where it does not come from a cache, or is changed on the way.
    """
    concat, path = _walk(value, what, interpreter)
    past, new = [*concat.inputs, None][:2]
    if past is None or new is None:
        raise NotUnderstood(f"its {what} is a Concat of less than a past and new ones")
    _check_concat(concat, past, new, what)
    present = _present(concat)
    path = path[1:] if path and path[0] is present.producer() else path
    lengths = {BATCH: dimension(past, 0), HEAD: dimension(past, 1), TOKEN: _total(past, new, present)}
    axes = Axes.of({**lengths, CHANNEL: dimension(past, 3)}, _equal_lengths(past, new, present))
    scale = 1.0
    for node in path:
        factor = scale_factor(node, interpreter)
        if factor is not None:
            scale *= factor[1]
            continue
        if node.op_type == "Cast" and node.attributes["to"].as_int() not in _FLOATS:
            raise NotUnderstood(f"its {what} is turned into {ir.DataType(node.attributes['to'].as_int())}")
        if node.op_type == "Cast" and cache_match.narrows(node, past.dtype):
            to = ir.DataType(node.attributes["to"].as_int())
            raise NotUnderstood(f"its {what} is rounded from {past.dtype} to {to} on its way from the cache")
        axes = follow(axes, node, interpreter)
    return CacheRead(past, new, concat, present, axes, scale, tuple(path))


def check_readers(read: CacheRead, what: str, attention: ir.Node) -> None:
    """The rewrite changes what a cache holds and its type, so nobody else may look into it.

    Args:
        read: from `read_cache`.
        what: "key" or "value", for the reason.
        attention: the node that reads the value at the end of the way.

    Raises:
        NotUnderstood: where somebody does, or where the cache is not an input and output of the graph.
    """
    if not read.past.is_graph_input() or read.past.is_initializer():
        raise NotUnderstood(f"its past_{what} {read.past.name!r} is not a graph input")
    if not read.present.is_graph_output():
        raise NotUnderstood(f"its {what} {read.present.name!r}, past and new, is not a graph output")
    values = [read.past, read.concat.outputs[0], read.present, *(node.outputs[0] for node in read.path)]
    allowed = {read.concat, read.present.producer(), *read.path, attention}
    for value in values:
        others = sorted(
            {
                f"{user.op_type} {user.name!r}"
                for user, _ in value.uses()
                if user not in allowed and user.op_type != "Shape"
            }
        )
        if others:
            raise NotUnderstood(
                f"{value.name!r} on its way is also read by {', '.join(others)}, as where layers share one cache"
            )
    if any(value.is_graph_output() for value in values if value is not read.present):
        raise NotUnderstood(f"its {what} is a graph output once more, beside {read.present.name!r}")


def cache_behind(value: ir.Value | None) -> ir.Value | None:
    """The graph input at the far end of a cache, if the way there looks like one; proves nothing."""
    for _ in range(LONGEST_CHAIN):
        node = None if value is None else value.producer()
        if node is None or node.domain not in STANDARD_DOMAINS or not node.inputs:
            return None
        past = node.inputs[0]
        if node.op_type == "Concat":
            return past if past is not None and past.is_graph_input() and len(node.inputs) == 2 else None
        if node.op_type not in (*FOLLOWED, "Mul", "Div"):
            return None
        value = past
    return None


def _walk(value: ir.Value, what: str, interpreter: MaskInterpreter) -> tuple[ir.Node, list[ir.Node]]:
    """The Concat, and the nodes from it to the value."""
    path: list[ir.Node] = []
    start = value
    while len(path) <= LONGEST_CHAIN:
        node = value.producer()
        if node is None:
            raise NotUnderstood(f"its {what} {start.name!r} comes from {value.name!r} instead of a cache")
        standard = node.domain in STANDARD_DOMAINS
        if standard and node.op_type == "Concat":
            return node, path[::-1]
        factor = scale_factor(node, interpreter)
        source = node.inputs[0] if standard and node.op_type in FOLLOWED else None
        source = factor[0] if factor is not None else source
        if source is None:
            domain = f"{node.domain}." if not standard else ""
            raise NotUnderstood(
                f"its {what} {start.name!r} does not come from a cache, past and new concatenated, but through "
                f"{domain}{node.op_type} {node.name or value.name!r}"
            )
        path.append(node)
        value = source
    raise NotUnderstood(f"its {what} {start.name!r} is more than {LONGEST_CHAIN} nodes away from a cache")


def _check_concat(concat: ir.Node, past: ir.Value, new: ir.Value, what: str) -> None:
    if len(concat.inputs) != 2 or not past.is_graph_input():
        raise NotUnderstood(
            f"its {what} is a Concat of {', '.join(repr(x.name) for x in concat.inputs if x)}, and not of a past "
            "(a graph input) and new ones"
        )
    if cache_match.rank(past, f"past {what}") != 4:
        raise NotUnderstood(
            f"its past_{what} {past.name!r} has {cache_match.rank(past, what)} axes, not [batch, heads, past, channels]"
        )
    axis = concat.attributes["axis"].as_int()
    if axis not in (2, -2):
        raise NotUnderstood(f"its {what} grows along axis {axis} of {past.name!r}, not along axis 2")
    if new.shape is not None and len(new.shape) == 4:
        for place in (1, 3):
            if isinstance(new.shape[place], int) and new.shape[place] != past.shape[place]:  # type: ignore[index]
                raise NotUnderstood(
                    f"its new {what} has {new.shape[place]} along axis {place} and the past {past.shape[place]}"  # type: ignore[index]
                )


def _present(concat: ir.Node) -> ir.Value:
    """The graph output: what the Concat makes, or a Cast of it to the type it has, as TorchScript may put between."""
    joined = concat.outputs[0]
    if joined.is_graph_output():
        return joined
    for node, _ in joined.uses():
        is_same = node.op_type == "Identity" or (
            node.op_type == "Cast" and node.attributes["to"].as_int() == joined.dtype
        )
        if is_same and node.outputs[0].is_graph_output():
            return node.outputs[0]
    return joined


def _total(past: ir.Value, new: ir.Value, present: ir.Value) -> Affine:
    """The number of tokens, past and new."""
    return dimension(present, 2) if present.shape is not None else dimension(past, 2) + dimension(new, 2)


def _equal_lengths(past: ir.Value, new: ir.Value, present: ir.Value) -> dict[str, Affine]:
    """What the Concat says of a length that goes by two names, such as "total" for past + new."""
    if new.shape is None or present.shape is None:
        return {}
    difference = dimension(present, 2) - dimension(past, 2) - dimension(new, 2)
    symbol = next((name for name, coefficient in difference.terms if abs(coefficient) == 1), None)
    if symbol is None:
        return {}
    return {symbol: Affine.symbol(symbol) - difference.scaled(difference.coefficient(symbol))}
