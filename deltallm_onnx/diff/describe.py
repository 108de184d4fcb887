"""Words for nodes and values that do not depend on their names: operators, attributes, and what they read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from deltallm_onnx.diff.tensors import dtype_text, view_tensor
from deltallm_onnx.diff.view import (
    INITIALIZER,
    INPUT,
    NODE,
    NONE,
    OUTER,
    GraphView,
    NodeView,
    Operand,
    attribute_token,
    bodies_of,
)

#: Longest text of one attribute value or operand; what is longer is cut, so that a line stays a line.
_LONGEST = 120

#: (domain, op_type, overload) → names of the formal inputs.
Signatures = Mapping[tuple[str, str, str], Sequence[str]]


def op_name(node: NodeView) -> str:
    """Operator with its domain, the standard domain left out."""
    domain, op_type, overload = node.kind
    return f"{f'{domain}::' if domain else ''}{op_type}{f':{overload}' if overload else ''}"


def attribute_text(attribute: ir.Attr, *, exact: bool = False) -> str:
    """The value of an attribute, on one line.

    Args:
        attribute: any attribute.
        exact: tell apart what rounding and cutting would make equal.
    """
    if exact:
        return f"{attribute_text(attribute)} ({_exact_text(attribute)})"
    bodies = bodies_of(attribute)
    if bodies is not None:
        return ", ".join(f"graph of {len(body)} nodes" for body in bodies)
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    return _shorten(_value_text(attribute.type, attribute.value))


def _value_text(kind: ir.AttributeType, value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value_text(kind, item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    if kind in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        return _tensor_text(value)
    return repr(value) if isinstance(value, str | bytes) else str(value)


class Describer:
    """Describes the nodes and values of one graph.

    Args:
        view: the graph.
        signatures: formal input names of the model's own functions.
        opsets: versions of the operator sets in force.
        outer: texts of the values of enclosing graphs.
    """

    def __init__(
        self,
        view: GraphView,
        signatures: Signatures,
        opsets: Mapping[str, int],
        outer: Mapping[ir.Value, str] | None = None,
    ) -> None:
        self.view, self.signatures, self.opsets = view, signatures, opsets
        self._outer = outer or {}
        self._formals: dict[tuple[str, str, str], Sequence[str]] = {}

    def inner(self, body: GraphView, node: NodeView) -> Describer:
        """A describer for a body of one of this graph's nodes."""
        texts = {value: self.operand(operand) for value, operand in node.captured.items()}
        return Describer(body, self.signatures, self.opsets, texts)

    def node(self, index: int) -> str:
        """`Op(attribute=value, …)[operand, …]`."""
        node = self.view.nodes[index]
        given = ", ".join(f"{name}={attribute_text(a)}" for name, a in sorted(node.source.attributes.items()))
        return f"{op_name(node)}{f'({given})' if given else ''}{self._operands(node, 0)}"

    def slot(self, node: NodeView, position: int) -> str:
        """`input 3 (attn_mask)`, or `input` for operators whose operands have no order."""
        if node.is_commutative:
            return "input"
        names = self._names(node)
        name = names[position] if position < len(names) else ""
        return f"input {position} ({name})" if name and len(names) > 1 else f"input {position}"

    def operand(self, operand: Operand, depth: int = 0) -> str:
        """Name of a graph input or initializer, value of a small constant, or the operator that gives the value.

        Args:
            operand: what to describe.
            depth: how many levels of the operands' operands are spelled out.
        """
        if operand.source == NODE:
            node = self.view.nodes[operand.entry]
            if (literal := self._constant(node)) is not None:
                return literal
            text = op_name(node) + (f":{operand.output}" if operand.output else "")
            return _shorten(text + self._operands(node, depth - 1)) if depth else text
        if operand.source == INPUT:
            return self.view.inputs[operand.entry].name or f"input {operand.entry}"
        if operand.source == INITIALIZER:
            name, tensor = self.view.initializers[operand.entry]
            return f"{name}: {tensor.type_text}" if depth else tensor.literal or name
        if operand.source == OUTER:
            return self._outer.get(self.view.outer[operand.entry], "outer value")
        return "nothing" if operand.source == NONE else f"undefined {self.view.undefined[operand.entry]}"

    def _operands(self, node: NodeView, depth: int) -> str:
        given = [(i, self.operand(x, depth)) for i, x in enumerate(node.operands) if x.source != NONE]
        names = self._names(node)
        if len(names) > 2 or len(given) < len(node.operands):
            # Among many optional inputs a position says little; the operator's own input names do.
            texts = [f"{names[i] if i < len(names) else f'#{i}'}={text}" for i, text in given]
        else:
            texts = [text for _, text in given]
        return f"[{', '.join(sorted(texts) if node.is_commutative else texts)}]"

    def _names(self, node: NodeView) -> Sequence[str]:
        if node.kind not in self._formals:
            self._formals[node.kind] = self._look_up(node)
        return self._formals[node.kind]

    def _look_up(self, node: NodeView) -> Sequence[str]:
        if node.kind in self.signatures:
            return self.signatures[node.kind]
        domain, op_type, _ = node.kind
        if not onnx.defs.has(op_type, domain) or domain not in self.opsets:
            return ()
        try:
            schema = onnx.defs.get_schema(op_type, self.opsets[domain], domain)
        except onnx.defs.SchemaError:
            return ()
        variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
        return [formal.name for formal in schema.inputs if formal.option != variadic]

    @staticmethod
    def _constant(node: NodeView) -> str | None:
        if node.kind != ("", "Constant", "") or len(node.source.attributes) != 1:
            return None
        return attribute_text(next(iter(node.source.attributes.values())))


def _exact_text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{attribute.value:.9g}"
    return (
        f"{attribute.type.name} {hashlib.blake2b(repr(attribute_token(attribute)).encode(), digest_size=4).hexdigest()}"
    )


def _tensor_text(tensor: ir.TensorProtocol) -> str:
    view = view_tensor(tensor, tensor.name or "")
    return view.literal or f"{dtype_text(tensor.dtype)}[{','.join(view.shape)}]"


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
