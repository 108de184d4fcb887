"""Find the weight matrices of a graph and who reads them, and say why the others stay as they are.

    y = MatMul(x, W), Gemm(x, W, c)           a product; W is [K, N], or [N, K] behind a Transpose or with transB
    y = Gather(W, token ids)                  a lookup; W is [N, K], one row per token

A matrix with tied embeddings has both kinds of readers.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
#: Operators on codes, whose float initializers are scales.
_OF_CODES = ("GatherBlockQuantized", "MatMulNBits", "QMoE")
#: What may lie between the scores of a router and its choice of experts.
_BEFORE_TOP_K = ("Add", "Cast", "Mul", "Reshape", "Sigmoid", "Softmax", "Sub")
#: What may lie between the graph's token ids and the lookup of their embeddings.
_SAME_IDS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
#: The name that every exporter gives them.
_IDS_INPUT = "input_ids"


@dataclasses.dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A float32 initializer that is only multiplied with, or looked up by token.

    Attributes:
        value: the initializer.
        columns_first: it is [K, N], as MatMul reads it; else [N, K].
        products: MatMul and Gemm nodes.
        lookups: Gather nodes.
        transposes: nodes between the initializer and its products; without use once these are replaced.
    """

    value: ir.Value
    columns_first: bool
    products: tuple[ir.Node, ...]
    lookups: tuple[ir.Node, ...]
    transposes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """Of the weight, without the suffix of a stored transpose."""
        return str(self.value.name).removesuffix("_transposed")


@dataclasses.dataclass(frozen=True, eq=False)
class KeptWeight:
    """A float initializer of two or more dimensions that stays as it is, and why.

    Attributes:
        value: the initializer.
        reason: half a sentence.
    """

    value: ir.Value
    reason: str

    @property
    def parameters(self) -> int:
        """Number of elements."""
        assert self.value.const_value is not None  # noqa: S101 - made from initializers with data only
        return int(self.value.const_value.size)


def find_matrices(graph: ir.Graph) -> tuple[list[WeightMatrix], list[KeptWeight]]:
    """Every float initializer of a graph with two or more dimensions, in order; reads no weight."""
    matrices: list[WeightMatrix] = []
    kept: list[KeptWeight] = []
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _FLOATS or len(tensor.shape) < 2:
            continue
        if all(use.node.op_type in _OF_CODES for use in value.uses()):
            continue  # the scales of codes, or read by nobody
        try:
            matrices.append(_matrix(graph, value, tensor))
        except _KeptError as error:
            kept.append(KeptWeight(value, str(error)))
    return matrices, kept


class _KeptError(Exception):
    """Why a weight stays as it is."""


def _matrix(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol) -> WeightMatrix:
    if tensor.dtype != ir.DataType.FLOAT:
        raise _KeptError(f"{tensor.dtype.name.lower()} already")
    if len(tensor.shape) > 2:
        raise _KeptError("a stack of matrices, as of experts")
    if value.is_graph_input() or value.is_graph_output():
        raise _KeptError("an input or output of the graph")
    transposes = [use.node for use in value.uses() if _is(graph, use.node, "Transpose") and _swaps(use.node)]
    readers = [(use, False) for use in value.uses() if use.node not in transposes]
    readers += [(use, True) for node in transposes for use in node.outputs[0].uses()]
    columns_first = {_by_columns(graph, use.node, use.idx) != turned for use, turned in readers}
    if len(columns_first) != 1:
        raise _KeptError("read both as it is and transposed")
    lookups = [use.node for use, _ in readers if use.node.op_type == "Gather"]
    products = [use.node for use, _ in readers if use.node.op_type != "Gather"]
    if any(_chooses_experts(node) for node in products):
        raise _KeptError("a router, which chooses experts")
    return WeightMatrix(value, columns_first.pop(), tuple(products), tuple(lookups), tuple(transposes))


def _swaps(transpose: ir.Node) -> bool:
    return list(transpose.attributes.get_ints("perm", [1, 0])) == [1, 0] and not transpose.outputs[0].is_graph_output()


def _is(graph: ir.Graph, node: ir.Node, operator: str) -> bool:
    return (node.domain, node.op_type) == ("", operator) and node.graph is graph


def _by_columns(graph: ir.Graph, node: ir.Node, index: int) -> bool:
    """Whether a reader takes the matrix as [K, N] (True) or as [N, K] (False)."""
    if _is(graph, node, "Gather") and index == 0:
        _check_lookup(node)
        return False
    if _is(graph, node, "MatMul") and index == 1:
        return True
    if _is(graph, node, "Gemm") and index == 1 and node.attributes.get_int("transA", 0) == 0:
        factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
        if factors == (1.0, 1.0):
            return node.attributes.get_int("transB", 0) == 0
        raise _KeptError("read by Gemm with alpha or beta, which MatMulNBits lacks")
    raise _KeptError(f"read by {node.op_type}")


def _check_lookup(node: ir.Node) -> None:
    """Only tables of tokens are coded: positions and rotary angles have to be exact."""
    ids = node.inputs[1]
    if node.attributes.get_int("axis", 0) != 0 or ids is None or ids.shape is None:
        raise _KeptError("read by Gather in another way than by rows")
    source: ir.Value | None = ids
    while source is not None and (producer := source.producer()) is not None and producer.op_type in _SAME_IDS:
        source = producer.inputs[0]
    if source is None or source.name != _IDS_INPUT:
        raise _KeptError("a table that is not read by token")


def _chooses_experts(product: ir.Node) -> bool:
    """Whether the largest of a product's results are looked for: rounding would choose other experts."""
    front, seen = [product], set()
    while front:
        node = front.pop()
        for use in (use for output in node.outputs for use in output.uses()):
            if use.node.op_type == "TopK":
                return True
            if use.node.op_type in _BEFORE_TOP_K and use.node not in seen:
                seen.add(use.node)
                front.append(use.node)
    return False
