"""A graph or function body as index-addressed nodes, operands and edges: what hashing and matching work on."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from deltallm_onnx.diff.tensors import TensorView, dtype_text, view_tensor
from deltallm_onnx.errors import DeltaLLMError

NONE, NODE, INPUT, INITIALIZER, OUTER, UNDEFINED = "none", "node", "input", "initializer", "outer", "undefined"

#: Slots without a position: operands of a commutative operator, and values read by a body.
ANY, CAPTURE = -1, -2

#: Standard operators whose operands may be swapped without changing the result.
_COMMUTATIVE = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor Equal Max Mean Min Mul Or Sum Xor".split()  # noqa: SIM905 -- one line reads better than twelve quoted words
)


class Operand(NamedTuple):
    """What a node reads: output `output` of node `entry`, or number `entry` of the leaves of kind `source`."""

    source: str
    entry: int = 0
    output: int = 0


class Edge(NamedTuple):
    """A use: node `node` reads `output` of the node that holds this edge, as operand `slot` (or ANY, or CAPTURE)."""

    node: int
    slot: int
    output: int


class Port(NamedTuple):
    """A graph input or output."""

    name: str
    type_text: str
    shape_text: str
    operand: Operand


@dataclasses.dataclass(eq=False, slots=True)
class NodeView:
    """One node.

    Attributes:
        kind: (domain, op_type, overload).
        attributes: token per attribute, graphs left out; equal tokens mean equal values.
        graphs: the bodies held in attributes, in the order of the list.
        operands: what it reads, trailing absent inputs cut off.
        captured: values of this graph and of those around it that its bodies read, with their operands.
        outputs: which outputs are present, trailing absent ones cut off.
        edges: who reads its outputs; captures count with slot CAPTURE.
        source: the node itself, for descriptions.
    """

    kind: tuple[str, str, str]
    attributes: dict[str, Hashable]
    graphs: dict[str, tuple[GraphView, ...]]
    operands: tuple[Operand, ...]
    captured: dict[ir.Value, Operand]
    outputs: tuple[bool, ...]
    edges: list[Edge]
    source: ir.Node

    @property
    def is_commutative(self) -> bool:
        """Whether the order of the operands carries no meaning."""
        return not self.kind[0] and self.kind[1] in _COMMUTATIVE

    def slot(self, position: int) -> int:
        """The slot operand `position` counts as: ANY for all operands of a commutative operator."""
        return ANY if self.is_commutative else position


@dataclasses.dataclass(eq=False, slots=True)
class GraphView:
    """One graph, function body or attribute body; nodes are in topological order.

    Attributes:
        initializers: (name, tensor) pairs.
        outer: values of enclosing graphs that this one reads; an OUTER operand indexes them.
        undefined: names that are read and nowhere defined; an UNDEFINED operand indexes them.
    """

    nodes: list[NodeView]
    inputs: list[Port]
    outputs: list[Port]
    initializers: list[tuple[str, TensorView]]
    outer: list[ir.Value]
    undefined: list[str]

    def undefined_operands(self) -> list[tuple[Operand, str]]:
        """Operands that nothing defines, with their names."""
        return [(Operand(UNDEFINED, i), name) for i, name in enumerate(self.undefined)]

    def users(self) -> dict[Operand, list[Edge]]:
        """For every leaf that is read: the nodes that read it."""
        found: dict[Operand, list[Edge]] = {}
        for index, node in enumerate(self.nodes):
            for position, operand in enumerate(node.operands):
                if operand.source not in (NODE, NONE):
                    found.setdefault(operand, []).append(Edge(index, node.slot(position), 0))
        return found


def view_graph(graph: ir.Graph | ir.Function, *, contents: bool = True) -> GraphView:
    """Index a graph or a function body, bodies in attributes included.

    Args:
        graph: the graph.
        contents: False leaves the data of initializers unread.

    Raises:
        DeltaLLMError: for a cyclic graph or malformed embedded data.
    """
    return _Builder(graph, enclosing=(), contents=contents).build()


def type_texts(value: ir.Value) -> tuple[str, str]:
    """Element type and shape of a graph input or output, as text; "?" where unknown."""
    is_tensor = value.type is None or isinstance(value.type, ir.TensorType)
    kind = dtype_text(value.dtype) if is_tensor else str(value.type)
    shape = value.shape
    if shape is None:
        return kind, "[...]"
    dims = [str(d) if isinstance(d, int) else (d.value or "?") for d in shape]
    return kind, f"[{','.join(dims)}]"


class _Builder:
    """Builds one GraphView; `enclosing` holds the value tables of the graphs around it."""

    def __init__(
        self, graph: ir.Graph | ir.Function, *, enclosing: tuple[dict[ir.Value, Operand], ...], contents: bool
    ) -> None:
        self.graph, self.enclosing, self.contents = graph, enclosing, contents
        self.places: dict[ir.Value, Operand] = {}
        self.outer: list[ir.Value] = []
        self.undefined: list[str] = []

    def build(self) -> GraphView:
        graph = self.graph
        for i, value in enumerate(graph.inputs):
            self.places[value] = Operand(INPUT, i)
        initializers: list[tuple[str, TensorView]] = []
        if isinstance(graph, ir.Graph):
            for name, value in graph.initializers.items():
                # An input with a default value stays an input for those who read it.
                self.places.setdefault(value, Operand(INITIALIZER, len(initializers)))
                initializers.append((name, view_tensor(value.const_value, name, contents=self.contents)))
        sources = _in_order(list(graph))
        for i, node in enumerate(sources):
            for k, value in enumerate(node.outputs):
                self.places[value] = Operand(NODE, i, k)
        nodes = [self.node(node) for node in sources]
        _connect(nodes)
        inputs = [Port(v.name or "", *type_texts(v), self.places[v]) for v in graph.inputs]
        outputs = [Port(v.name or "", *type_texts(v), self.place(v)) for v in graph.outputs]
        return GraphView(nodes, inputs, outputs, initializers, self.outer, self.undefined)

    def place(self, value: ir.Value | None) -> Operand:
        """The operand for a value, noting it as outer or undefined on the way."""
        if value is None or (not value.name and value.producer() is None and value not in self.places):
            return Operand(NONE)
        operand = self.places.get(value)
        if operand is None:
            if any(value in places for places in self.enclosing):
                operand = Operand(OUTER, len(self.outer))
                self.outer.append(value)
            else:
                operand = Operand(UNDEFINED, len(self.undefined))
                self.undefined.append(value.name or "")
            self.places[value] = operand
        return operand

    def node(self, node: ir.Node) -> NodeView:
        graphs: dict[str, tuple[GraphView, ...]] = {}
        attributes: dict[str, Hashable] = {}
        captured: dict[ir.Value, Operand] = {}
        for name, attribute in sorted(node.attributes.items()):
            bodies = bodies_of(attribute)
            if bodies is None:
                attributes[name] = attribute_token(attribute)
                continue
            tables = (*self.enclosing, self.places)
            graphs[name] = tuple(_Builder(body, enclosing=tables, contents=self.contents).build() for body in bodies)
            captured.update((value, self.place(value)) for body in graphs[name] for value in body.outer)
        operands = [self.place(value) for value in node.inputs]
        while operands and operands[-1].source == NONE:
            operands.pop()
        present = [bool(value.name) or bool(value.uses()) or value.is_graph_output() for value in node.outputs]
        while present and not present[-1]:
            present.pop()
        kind = (node.domain, node.op_type, node.overload)
        return NodeView(kind, attributes, graphs, tuple(operands), captured, tuple(present), [], node)


def _connect(nodes: list[NodeView]) -> None:
    for i, view in enumerate(nodes):
        for position, operand in enumerate(view.operands):
            if operand.source == NODE:
                nodes[operand.entry].edges.append(Edge(i, view.slot(position), operand.output))
        for operand in view.captured.values():
            if operand.source == NODE:
                nodes[operand.entry].edges.append(Edge(i, CAPTURE, operand.output))


def bodies_of(attribute: ir.Attr) -> Sequence[ir.Graph] | None:
    """The graphs an attribute holds; None for any other attribute."""
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return None


def attribute_token(attribute: ir.Attr) -> Hashable:
    """A hashable that is equal for equal attribute values; floats compare as the float32 a file holds."""
    kind, value = attribute.type, attribute.value
    token: Hashable
    if attribute.is_ref():
        token = ("ref", attribute.ref_attr_name)
    elif kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        token = _float_bytes(value)
    elif kind in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        token = tuple(value)
    elif kind in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        tensors = [value] if kind == ir.AttributeType.TENSOR else value
        token = tuple(view_tensor(tensor, attribute.name)[:3] for tensor in tensors)
    elif kind in (ir.AttributeType.INT, ir.AttributeType.STRING):
        token = value
    else:
        token = str(value)
    return (kind.name, token)


def _float_bytes(values: float | Sequence[float]) -> bytes:
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).tobytes()


def _in_order(nodes: list[ir.Node]) -> list[ir.Node]:
    """Nodes in topological order: as given if that already is one, else the first found."""
    number = {node: i for i, node in enumerate(nodes)}
    needs = [sorted({number[p] for p in _producers(node) if p in number}) for node in nodes]
    if all(not before or before[-1] < i for i, before in enumerate(needs)):
        return nodes
    waiting = [len(before) for before in needs]
    readers: list[list[int]] = [[] for _ in nodes]
    for i, before in enumerate(needs):
        for p in before:
            readers[p].append(i)
    ready = deque(i for i, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        i = ready.popleft()
        order.append(i)
        for r in readers[i]:
            waiting[r] -= 1
            if not waiting[r]:
                ready.append(r)
    if len(order) < len(nodes):
        node = nodes[next(i for i, count in enumerate(waiting) if count)]
        raise DeltaLLMError(
            f"The graph has a cycle through node {node.name!r} ({node.op_type}): it cannot be compared."
        )
    return [nodes[i] for i in order]


def _producers(node: ir.Node) -> list[ir.Node]:
    found = [p for value in node.inputs if value is not None and (p := value.producer()) is not None]
    for attribute in node.attributes.values():
        for body in bodies_of(attribute) or ():
            for inner in body:
                found.extend(_producers(inner))
    return found
