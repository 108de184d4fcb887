"""Author the nodes of a function body, or of a piece of a graph, in the order they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

#: Attributes of the three operators: type and default (docs/spec.md section 7). None: the node must give it.
ATTRIBUTES: dict[str, tuple[ir.AttributeType, Any]] = {
    "num_heads": (ir.AttributeType.INT, None),
    "kv_num_heads": (ir.AttributeType.INT, None),
    "scale": (ir.AttributeType.FLOAT, 0.0),
    "softcap": (ir.AttributeType.FLOAT, 0.0),
    "local_window_size": (ir.AttributeType.INT, -1),
    "do_rotary": (ir.AttributeType.INT, 0),
    "rotary_interleaved": (ir.AttributeType.INT, 0),
    "delta_window": (ir.AttributeType.INT, 0),
    "sinks": (ir.AttributeType.INT, 0),
    "granularity": (ir.AttributeType.STRING, "element"),
    "row_rule": (ir.AttributeType.STRING, "relative"),
    "refresh": (ir.AttributeType.INT, 0),
    "v_skip": (ir.AttributeType.FLOAT, 0.0),
    "prefill": (ir.AttributeType.STRING, "delta"),
    "cache_format": (ir.AttributeType.STRING, "float32"),
    # Allows the operator lower precision; a body computes in float32.
    "prefill_compute": (ir.AttributeType.STRING, "float32"),
}


class Body:
    """A growing list of nodes.

    Numeric attributes of the operator are references inside a function, so that every call of it keeps its own, and
    plain numbers inside a graph.

    Args:
        values: the operator's attributes by name; None writes references to them.
        prefix: begins the name of every node and value.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, prefix: str = "") -> None:
        self.nodes: list[ir.Node] = []
        self._values = values
        self._prefix = prefix
        self._constants: dict[tuple[str, Any], ir.Value] = {}
        self._names: dict[str, int] = {}

    def op(
        self, op_type: str, *inputs: ir.Value | None, name: str = "", domain: str = "", **attributes: Any
    ) -> ir.Value:
        """Append a node with one output. `name` is the output's name, the operator's if empty."""
        return self.ops(op_type, inputs, (name,), domain=domain, **attributes)[0]

    def ops(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node with one output per name. Attributes are plain values or `ir.Attr`."""
        attrs = [v if isinstance(v, ir.Attr) else ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        node = ir.Node(domain, op_type, inputs, attrs, num_outputs=len(names))
        for output, name in zip(node.outputs, names, strict=True):
            output.name = self.unique(name or op_type)
        node.name = f"{node.outputs[0].name}/{op_type}"
        self.nodes.append(node)
        return node.outputs

    def unique(self, name: str) -> str:
        """A name nothing in this body has yet."""
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return f"{self._prefix}{name}" + (f"_{count}" if count else "")

    def attribute(self, name: str) -> ir.Attr:
        """The operator's attribute of that name, to be put on a node that has it too."""
        return self._attribute(name, name)

    def number(self, name: str) -> ir.Value:
        """The operator's numeric attribute of that name as a scalar, int64 or float32."""
        kind = "value_int" if ATTRIBUTES[name][0] is ir.AttributeType.INT else "value_float"
        return self._constant(("attribute", name), self._attribute(kind, name), name)

    def scalar(self, value: float) -> ir.Value:
        """An int64 or, for a float, float32 scalar."""
        kind = "value_float" if isinstance(value, float) else "value_int"
        return self._constant((kind, value), ir.convenience.convert_attribute(kind, value), f"constant_{value}")

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        attr = ir.AttrInt64s("value_ints", list(values))
        return self._constant(("value_ints", values), attr, "axes_" + "_".join(map(str, values)))

    def cast(self, value: ir.Value, to: ir.DataType, name: str = "") -> ir.Value:
        """Cast; nothing for a value known to have the type."""
        return value if value.dtype is to else self.op("Cast", value, to=int(to), name=name)

    def dim(self, value: ir.Value, axis: int, name: str = "") -> ir.Value:
        """One dimension as int64 [1]."""
        return self.op("Shape", value, start=axis, end=axis + 1, name=name)

    def as_scalar(self, value: ir.Value, name: str = "") -> ir.Value:
        """[1] → scalar."""
        return self.op("Squeeze", value, self.ints(0), name=name)

    def as_vector(self, value: ir.Value) -> ir.Value:
        """Scalar → [1]."""
        return self.op("Unsqueeze", value, self.ints(0))

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """New axes of size one."""
        return self.op("Unsqueeze", value, self.ints(*axes))

    def slice(self, value: ir.Value, first: ir.Value, last: ir.Value, axis: int, name: str = "") -> ir.Value:
        """Rows first to last − 1 of one axis; both ends are int64 [1]."""
        return self.op("Slice", value, first, last, self.ints(axis), name=name)

    def range(self, count: ir.Value, name: str = "") -> ir.Value:
        """0 … count − 1, int64; `count` is a scalar."""
        return self.op("Range", self.scalar(0), count, self.scalar(1), name=name)

    def reduce(self, op_type: str, value: ir.Value, *axes: int, keepdims: int = 0, name: str = "") -> ir.Value:
        """A reduction over axes, or over all of them."""
        return self.op(op_type, value, self.ints(*axes) if axes else None, keepdims=keepdims, name=name)

    def all_of(self, *conditions: ir.Value, name: str = "") -> ir.Value:
        """And over two or more."""
        result = conditions[0]
        for condition in conditions[1:-1]:
            result = self.op("And", result, condition)
        return self.op("And", result, conditions[-1], name=name)

    def refuse_if(self, condition: ir.Value, sentence: str) -> ir.Value:
        """An int64 zero that cannot be computed where the scalar condition holds.

        Standard ops cannot raise: a Gather out of bounds stops the run, and its node's name says why.
        """
        index = self.op("Cast", condition, to=int(ir.DataType.INT64))
        zero = self.op("Gather", self.ints(0), index, name="checked")
        self.nodes[-1].name = f"{self._prefix}{sentence.replace(' ', '_')}"
        return zero

    def subgraph(
        self, name: str, inputs: Mapping[str, tuple[ir.DataType, int]], build: Callable[..., Sequence[ir.Value]]
    ) -> ir.Graph:
        """A nested graph; it may use values of this body.

        Args:
            name: of the graph.
            inputs: name, type and rank of its inputs. Up to 1.23 ONNX Runtime refuses a Scan that does not know ranks.
            build: takes the input values and returns the outputs, which have type and shape of the first input.
        """
        outer, self.nodes = self.nodes, []
        # Constants made inside are not visible outside.
        constants = dict(self._constants)
        values = [
            ir.Value(name=self.unique(key), type=ir.TensorType(dtype), shape=ir.Shape([None] * rank))
            for key, (dtype, rank) in inputs.items()
        ]
        outputs = build(*values)
        for output in outputs:
            output.type, output.shape = values[0].type, values[0].shape
        graph = ir.Graph(values, outputs, nodes=self.nodes, name=name)
        self.nodes, self._constants = outer, constants
        return graph

    def _attribute(self, put_as: str, name: str) -> ir.Attr:
        kind, default = ATTRIBUTES[name]
        if self._values is None:
            return ir.RefAttr(put_as, name, kind)
        return ir.Attr(put_as, kind, self._values.get(name, default))

    def _constant(self, key: tuple[str, Any], attr: ir.Attr, name: str) -> ir.Value:
        if key not in self._constants:
            self._constants[key] = self.op("Constant", name=name, value=attr)
        return self._constants[key]


def make_function(
    name: str,
    body: Body,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    *,
    attributes: Sequence[str],
    opset_version: int,
    doc_string: str,
) -> ir.Function:
    """A model-local function of domain ai.deltallm.

    Args:
        name: the operator's name.
        body: its nodes.
        inputs: every input a node may pass, named; unused ones included.
        outputs: in the operator's order.
        attributes: names out of ATTRIBUTES.
        opset_version: of the standard operators.
        doc_string: what the function computes.
    """
    graph = ir.Graph(inputs, outputs, nodes=body.nodes, name=name, opset_imports={"": opset_version, "ai.deltallm": 1})
    declared = [ir.Attr(key, *ATTRIBUTES[key]) for key in attributes]
    function = ir.Function("ai.deltallm", name, graph=graph, attributes=declared)
    function.doc_string = doc_string
    return function
