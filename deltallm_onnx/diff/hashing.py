"""Structural identities of nodes: what they compute (forward), where it goes (backward), what is around them (nearby).

Identities are interned, not hashed: one table shared by both models gives every distinct structure a number, so equal
numbers mean equal structures, without collisions and without depending on a hash seed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import onnx_ir as ir

from deltallm_onnx.diff.tensors import TensorView
from deltallm_onnx.diff.view import INITIALIZER, INPUT, NODE, NONE, OUTER, GraphView, NodeView, Operand

#: Operators whose result is not a function of their inputs: two equal ones are not the same value.
_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

#: Token of every operand that no node produces.
Leaves = Mapping[Operand, int]


class Interner:
    """Gives equal keys equal numbers."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, *key: Hashable) -> int:
        """The number of this key."""
        return self._numbers.setdefault(key, len(self._numbers))


def tensor_token(tensor: TensorView, intern: Interner) -> int:
    """Equal for tensors of equal type and, where it is known, equal content."""
    return intern("tensor", tensor.dtype, tensor.shape, tensor.digest)


def labels(view: GraphView, intern: Interner) -> list[int]:
    """Per node: operator, attributes, bodies and present outputs: all but what it is connected to."""
    found = []
    for node in view.nodes:
        bodies = _bodies(node, intern, lambda _: -1)
        found.append(intern("label", node.kind, _attributes(node), bodies, node.outputs))
    return found


def forward(view: GraphView, leaves: Leaves, intern: Interner, salt: Sequence[int] = ()) -> list[int]:
    """Per node: a number that is equal for nodes that compute the same expression of the same leaves.

    Args:
        view: the graph.
        leaves: the tokens of its leaves.
        intern: shared by both models.
        salt: per node, or empty; told apart by it are only nodes that draw random numbers.
    """
    result: list[int] = []

    def token(operand: Operand) -> int:
        if operand.source == NODE:
            return intern("output", result[operand.entry], operand.output)
        return leaves[operand]

    for i, node in enumerate(view.nodes):
        operands = [token(operand) for operand in node.operands]
        if node.is_commutative:
            operands.sort()
        captured = {value: token(operand) for value, operand in node.captured.items()}
        bodies = _bodies(node, intern, captured.__getitem__)
        drawn = salt[i] if salt and node.kind[1] in _RANDOM else -1
        result.append(intern("forward", node.kind, _attributes(node), bodies, node.outputs, tuple(operands), drawn))
    return result


def backward(
    view: GraphView, leaves: Leaves, label: Sequence[int], sinks: Mapping[int, Sequence[int]], intern: Interner
) -> list[int]:
    """Per node: equal for nodes with the same label and leaves that are used in the same way down to the outputs.

    Args:
        view: the graph.
        leaves: the tokens of its leaves.
        label: the labels of its nodes.
        sinks: node → tokens of the graph outputs it gives.
        intern: shared by both models.
    """
    result = [-1] * len(view.nodes)
    for i in range(len(view.nodes) - 1, -1, -1):
        node = view.nodes[i]
        uses = sorted((result[edge.node], edge.slot, edge.output) for edge in node.edges)
        result[i] = intern("backward", label[i], leaf_slots(node, leaves), tuple(uses), tuple(sorted(sinks.get(i, ()))))
    return result


def leaf_slots(node: NodeView, leaves: Leaves) -> tuple[tuple[int, int], ...]:
    """(slot, token) of the operands that no node produces."""
    found = [
        (node.slot(position), leaves[operand])
        for position, operand in enumerate(node.operands)
        if operand.source not in (NODE, NONE)
    ]
    return tuple(sorted(found) if node.is_commutative else found)


def _attributes(node: NodeView) -> tuple[tuple[str, Hashable], ...]:
    return tuple(node.attributes.items())


def _bodies(node: NodeView, intern: Interner, outer: Callable[[ir.Value], int]) -> Hashable:
    return tuple((name, tuple(_body(b, intern, outer) for b in bodies)) for name, bodies in node.graphs.items())


def _body(body: GraphView, intern: Interner, outer: Callable[[ir.Value], int]) -> int:
    """Identity of what a body gives: its inputs and outputs count by position, `outer` tells what it captures."""
    leaves: dict[Operand, int] = {Operand(NONE): intern("none")}
    leaves.update((Operand(INPUT, i), intern("body input", i)) for i in range(len(body.inputs)))
    leaves.update(
        (Operand(INITIALIZER, i), tensor_token(tensor, intern)) for i, (_, tensor) in enumerate(body.initializers)
    )
    leaves.update((Operand(OUTER, i), intern("outer", outer(value))) for i, value in enumerate(body.outer))
    leaves.update((operand, intern("undefined", name)) for operand, name in body.undefined_operands())
    nodes = forward(body, leaves, intern)
    outputs = tuple(
        intern("output", nodes[p.operand.entry], p.operand.output) if p.operand.source == NODE else leaves[p.operand]
        for p in body.outputs
    )
    return intern("body", len(body.inputs), outputs)
