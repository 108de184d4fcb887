"""Fixed points of a comparison: which inputs, outputs and initializers correspond before any node does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from deltallm_onnx.diff.hashing import Interner, Leaves, tensor_token
from deltallm_onnx.diff.tensors import TensorView
from deltallm_onnx.diff.view import INITIALIZER, NODE, NONE, OUTER, GraphView, Operand, Port


@dataclasses.dataclass(frozen=True)
class PortRule:
    """How inputs and outputs of two graphs correspond.

    Attributes:
        by_position: the n-th to the n-th, as bodies and functions are called; else by name.
        names_count: False pairs what has no partner of its name with the next one of the same type.
    """

    by_position: bool = False
    names_count: bool = True


@dataclasses.dataclass(frozen=True)
class Anchors:
    """Tokens of the leaves of both graphs; equal tokens mean the same thing.

    Attributes:
        inputs, outputs: index pairs that correspond.
        leaves: per side, token of every leaf.
        sinks: per side, node → tokens of the outputs it gives.
    """

    inputs: dict[int, int]
    outputs: dict[int, int]
    leaves: tuple[Leaves, Leaves]
    sinks: tuple[dict[int, list[int]], dict[int, list[int]]]


def find_anchors(
    a: GraphView,
    b: GraphView,
    rule: PortRule,
    outer: tuple[Mapping[ir.Value, int], Mapping[ir.Value, int]],
    intern: Interner,
) -> Anchors:
    """Pair the ports and name the leaves.

    Args:
        a: one graph.
        b: the other.
        rule: how inputs and outputs correspond.
        outer: per side, tokens of the values of enclosing graphs.
        intern: shared by both models.
    """
    views = (a, b)
    inputs, outputs = pair_ports(a.inputs, b.inputs, rule), pair_ports(a.outputs, b.outputs, rule)
    input_partner = (inputs, {j: i for i, j in inputs.items()})
    output_partner = (outputs, {j: i for i, j in outputs.items()})
    leaves: list[dict[Operand, int]] = []
    for side, view in enumerate(views):
        tokens = {Operand(NONE): intern("none")}
        for i, port in enumerate(view.inputs):
            tokens[port.operand] = intern("input", _port_key(i, port, input_partner[side], side))
        for i, value in enumerate(view.outer):
            tokens[Operand(OUTER, i)] = outer[side][value]
        tokens.update((operand, intern("undefined", name)) for operand, name in view.undefined_operands())
        tokens.update(_initializer_tokens(view, views[1 - side], intern))
        leaves.append(tokens)
    sinks = [_sinks(view.outputs, output_partner[side], side, intern) for side, view in enumerate(views)]
    return Anchors(inputs, outputs, leaves=(leaves[0], leaves[1]), sinks=(sinks[0], sinks[1]))


def _initializer_tokens(view: GraphView, other: GraphView, intern: Interner) -> dict[Operand, int]:
    """By name where the other graph has a tensor of that name and type, unless contents say otherwise.

    Equal names with other contents are a weight that changed, or numbers that an exporter counted anew: the latter if
    it is a small constant, or if either content is found under another name.
    """
    namesakes = dict(other.initializers)
    contents = [{tensor[:3] for _, tensor in side.initializers if tensor.digest is not None} for side in (view, other)]
    tokens: dict[Operand, int] = {}
    for i, (name, tensor) in enumerate(view.initializers):
        namesake = namesakes.get(name)
        by_name = namesake is not None and tensor[:2] == namesake[:2]
        if by_name and namesake is not None and tensor.digest is not None and namesake.digest is not None:
            by_name = not tensor.literal and tensor[:3] not in contents[1] and namesake[:3] not in contents[0]
        tokens[Operand(INITIALIZER, i)] = intern("initializer", name) if by_name else tensor_token(tensor, intern)
    return tokens


def pair_ports(a: Sequence[Port], b: Sequence[Port], rule: PortRule) -> dict[int, int]:
    """Index pairs of corresponding inputs (or outputs)."""
    if rule.by_position:
        return {i: i for i in range(min(len(a), len(b)))}
    where = {port.name: j for j, port in enumerate(b)}
    pairs = {i: where[port.name] for i, port in enumerate(a) if port.name in where}
    if not rule.names_count:
        taken = set(pairs.values())
        free: dict[tuple[str, int], list[int]] = {}
        for j in range(len(b) - 1, -1, -1):
            if j not in taken:
                free.setdefault(_kind(b[j]), []).append(j)
        for i, port in enumerate(a):
            if i not in pairs and (same_kind := free.get(_kind(port))):
                pairs[i] = same_kind.pop()
    return pairs


def same_initializer(x: TensorView, y: TensorView) -> bool:
    """Whether two tensors have the same type and, where both were read, the same content."""
    return x[:2] == y[:2] and (x.digest is None or y.digest is None or x.digest == y.digest)


def _kind(port: Port) -> tuple[str, int]:
    """Element type and rank."""
    return port.type_text, port.shape_text.count(",")


def _sinks(outputs: Sequence[Port], partner: Mapping[int, int], side: int, intern: Interner) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i, port in enumerate(outputs):
        if port.operand.source != NODE:
            continue
        key = _port_key(i, port, partner, side)
        found.setdefault(port.operand.entry, []).append(intern("sink", port.operand.output, key))
    return found


def _port_key(index: int, port: Port, partner: Mapping[int, int], side: int) -> tuple[object, ...]:
    """Equal for the two of a pair; a port without a partner is known by its type alone."""
    if index not in partner:
        return (port.type_text, port.shape_text)
    return (index, partner[index]) if side == 0 else (partner[index], index)
