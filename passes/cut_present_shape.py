"""Take lengths from the graph's inputs instead of from its caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from deltallm_onnx.passes.affine import Affine, dimension
from deltallm_onnx.passes.constants import STANDARD_DOMAINS, constant_of
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.site import AttentionSite, NotUnderstood

#: Operators through which a cache is followed to what reads its shape.
_LAYOUT = ("Cast", "Div", "Expand", "Identity", "Mul", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze")


class CutPresentShapePass(ir.passes.InPlacePass):
    """Replace every Shape of a cache, past or present, by lengths that do not need the cache.

    Two things are wrong with such a Shape once a layer is rewritten: the rows of a packed or preallocated cache are not
    its tokens, and a present that only DeltaAttention makes must not be needed before it (the rotary embedding or a
    bias of the same layer may ask how long it is, which was no cycle while a Concat made it).

    Matched (P past tokens, S new ones, T = P + S; layout changes and repeated heads may lie before the Shape):

        past [B, Hkv, P, D] or present [B, Hkv, T, D] ─▶ Shape ─▶ [B, Hkv, T, D]

    Replacement, for the lengths that are asked for:

        Shape(attention_mask)[1] = T,  Shape(input_ids)[1] = S (any input with that dimension),  T − S = P,  B, numbers
        where there is no attention_mask: P = Shape(past)[2], and T = P + S
        where no input has the dimension S: S = Shape(new key)[2], for present only

    A Shape of which an entry that is read is none of these stays. To be run before `BuildDeltaAttentionPass`; the graph
    has to be sorted after that, because nodes that asked a present for its length may stand behind its old producer.

    Args:
        sites: the layers that will be rewritten.
    """

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        super().__init__()
        self._sites = sites

    def requires(self, model: ir.Model) -> None:
        """Every site's node is still in the main graph."""
        for site in self._sites:
            if site.node.graph is not model.graph:
                raise ir.passes.PreconditionError(f"Layer {site.layer} is not in this graph.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the Shape nodes of all sites."""
        interpreter, made = MaskInterpreter(), _Made(model.graph)
        caches = {cache for site in self._sites for cache in (site.past_key, site.past_value)}
        inputs = [value for value in model.graph.inputs if value not in caches and value.shape is not None]
        asked: list[tuple[ir.Node, tuple[Affine, ...], _CacheLengths]] = []
        for site in self._sites:
            for past, new, present in (
                (site.past_key, site.key, site.present_key),
                (site.past_value, site.value, site.present_value),
            ):
                newest = (site.query if new is None else new, 2 if site.heads_first else 1)
                lengths = _CacheLengths(past, newest, present, site.mask.padding, made)
                lengths.find_sources(inputs)
                for cache in (past, present):
                    for node in _shape_readers(cache):
                        shape = () if node.inputs[0] is past and not _asks_tokens(node) else _asked(node, interpreter)
                        shape = lengths.without_unread(node, shape, of_past=cache is past)
                        if shape and all(lengths.is_known(length, of_past=cache is past) for length in shape):
                            asked.append((node, shape, lengths))
        for node, shape, lengths in asked:  # all shapes are known before the first one is asked of something else
            _replace(node, [lengths.value(length) for length in shape])
        return ir.passes.PassResult(model, modified=bool(asked))


class _Made:
    """Nodes that give one length as a list of one entry, each made once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._first = graph[0]
        self._values: dict[object, ir.Value] = {}

    def length(self, value: ir.Value, axis: int, before: ir.Node | None = None) -> ir.Value:
        """Shape(value)[axis], at the start of the graph or before a node."""
        key = (value, axis)
        if key not in self._values:
            shape = self.node("Shape", [value], before)
            self._values[key] = self.node("Gather", [shape, self.constant(axis)], before, axis=0)
        return self._values[key]

    def combined(self, op: str, a: ir.Value, b: ir.Value, before: ir.Node | None = None) -> ir.Value:
        """A + b or a − b."""
        key = (op, a, b)
        if key not in self._values:
            self._values[key] = self.node(op, [a, b], before)
        return self._values[key]

    def constant(self, number: int) -> ir.Value:
        """A list of one constant."""
        if number not in self._values:
            name = f"deltallm.length.{number}"
            value = ir.Value(name=name, const_value=ir.tensor(np.array([number], np.int64), name=name))
            value.dtype, value.shape = ir.DataType.INT64, ir.Shape([1])
            self._graph.register_initializer(value)
            self._values[number] = value
        return self._values[number]

    def node(self, op: str, inputs: Sequence[ir.Value], before: ir.Node | None, **attributes: int) -> ir.Value:
        """Insert a node."""
        name = f"deltallm/lengths/{op}_{len(self._values)}"
        node = ir.node(op, inputs, attributes, name=name)
        output = node.outputs[0]
        output.name, output.dtype = f"{name}_output", ir.DataType.INT64
        self._graph.insert_before(before or self._first, node)
        return output


class _CacheLengths:
    """Where the lengths of one cache come from."""

    def __init__(
        self, past: ir.Value, new: tuple[ir.Value, int], present: ir.Value, padding: ir.Value | None, made: _Made
    ) -> None:
        self.past, self.present = past, present
        self._made, self._padding = made, padding
        self._batch, self._past_length = dimension(past, 0), dimension(past, 2)
        self._new, self._new_length = new, dimension(*new)
        self._source: tuple[ir.Value, int] | None = None
        self._batch_source: tuple[ir.Value, int] | None = None

    def find_sources(self, inputs: Sequence[ir.Value]) -> None:
        """Graph inputs that are as long as the batch and the new tokens."""
        self._source = _input_with(self._new_length, inputs)
        self._batch_source = (self._padding, 0) if self._padding is not None else _input_with(self._batch, inputs)

    def is_known(self, length: Affine, *, of_past: bool) -> bool:
        """Whether a length can be had: for a past only from graph inputs, since the new tokens come later."""
        known = [self._batch, self._past_length]
        if self._source is not None or not of_past:
            known += [self._new_length, self._past_length + self._new_length]
        return length in known or (length.is_constant() and length.const >= 0)

    def without_unread(self, node: ir.Node, shape: tuple[Affine, ...], *, of_past: bool) -> tuple[Affine, ...]:
        """A shape with 0 for entries that are unknown and that nobody reads, such as batch and heads on one axis."""
        read = _entries_read(node, len(shape))
        return tuple(
            length if index in read or self.is_known(length, of_past=of_past) else Affine(0)
            for index, length in enumerate(shape)
        )

    def value(self, length: Affine) -> ir.Value:
        """A length, as a list of one entry."""
        if length.is_constant():
            return self._made.constant(length.const)
        if length == self._batch:
            return self._made.length(*(self._batch_source or (self.past, 0)))
        if length == self._past_length:
            return self._past()
        return self._of_new() if length == self._new_length else self._total()

    def _past(self) -> ir.Value:
        if self._padding is None or self._source is None:
            return self._made.length(self.past, 2)
        return self._made.combined("Sub", self._made.length(self._padding, 1), self._of_new())

    def _total(self) -> ir.Value:
        if self._padding is not None:
            return self._made.length(self._padding, 1)
        return self._made.combined("Add", self._made.length(self.past, 2), self._of_new(), self._place())

    def _of_new(self) -> ir.Value:
        return self._made.length(*(self._source or self._new), self._place())

    def _place(self) -> ir.Node | None:
        return None if self._source is not None else self.present.producer()


def _input_with(length: Affine, inputs: Sequence[ir.Value]) -> tuple[ir.Value, int] | None:
    """A graph input and its axis of a length that is one symbol."""
    for value in inputs:
        for axis in range(len(value.shape or ())):
            if not length.is_constant() and dimension(value, axis) == length:
                return value, axis
    return None


def _shape_readers(cache: ir.Value) -> Iterator[ir.Node]:
    """The Shape nodes behind a cache and behind its layout changes."""
    values, seen = [cache], {cache}
    while values:
        for user, index in values.pop().uses():
            if user.domain not in STANDARD_DOMAINS or index != 0:
                continue
            if user.op_type == "Shape":
                yield user
            elif user.op_type in _LAYOUT and user.outputs[0] not in seen:
                seen.add(user.outputs[0])
                values.append(user.outputs[0])


def _asks_tokens(node: ir.Node) -> bool:
    """Whether a Shape of a cache gives its rows; batch and heads of a past stay what they are."""
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    return 2 in range(4)[start:end]


def _asked(node: ir.Node, interpreter: MaskInterpreter) -> tuple[Affine, ...]:
    """The lengths that a Shape gives; none where they are unknown or nobody reads them."""
    value, output = node.inputs[0], node.outputs[0]
    if value is None or not (output.uses() or output.is_graph_output()):
        return ()
    try:
        shape = interpreter.shape(value)
    except NotUnderstood:
        return ()
    start, end = (node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end"))
    return shape[start:end]


def _entries_read(node: ir.Node, count: int) -> set[int]:
    """The entries of a Shape that are gathered one by one; all of them where it has other readers."""
    read: set[int] = set()
    for user, place in node.outputs[0].uses():
        index = None if len(user.inputs) < 2 or user.inputs[1] is None else _constant(user.inputs[1])
        if user.op_type != "Gather" or user.domain not in STANDARD_DOMAINS or place != 0 or index is None:
            return set(range(count))
        read |= {int(entry) % count for entry in index.flat}
    return set(range(count)) if node.outputs[0].is_graph_output() else read


def _constant(value: ir.Value) -> np.ndarray | None:
    """The numbers of a constant that no caller can replace."""
    tensor = constant_of(value)
    return None if tensor is None else tensor.numpy()


def _replace(node: ir.Node, lengths: Sequence[ir.Value]) -> None:
    """Give a Shape's readers lengths from elsewhere."""
    joined = ir.node("Concat", lengths, {"axis": 0}, name=f"{node.outputs[0].name}/lengths")
    output = joined.outputs[0]
    output.name = f"{joined.name}_output"
    output.dtype, output.shape = ir.DataType.INT64, ir.Shape([len(lengths)])
    if node.graph is not None:
        node.graph.insert_before(node, joined)
    old = node.outputs[0]
    is_output = old.is_graph_output()
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    if is_output:  # known by its name
        output.type, output.shape = old.type, old.shape
        output.metadata_props.update(old.metadata_props)
        output.name, old.name = old.name, None
