"""What the weights of an .onnx file take in memory once ONNX Runtime has opened it, from their shapes alone.

ONNX Runtime lays matrices out anew for its kernels ("prepacking") and lets go of the original as soon as no other node
reads it. Weights in a data file are mapped: pages come in as they are read. Weights inside the .onnx file are parsed
into one copy and moved into another, and both stay. docs/memory.md has the measurements these rules come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir

from deltallm_onnx.external_data import external_references

_EXTERNAL = onnx.TensorProto.EXTERNAL
#: Operator → input that its kernel lays out anew where it is constant.
_PACKED_INPUTS = {
    ("", "MatMul"): 1,
    ("", "Gemm"): 1,
    ("com.microsoft", "MatMulNBits"): 1,
    ("com.microsoft", "FusedMatMul"): 1,
}
#: Operators that are computed once where their input is constant.
_COMPUTED = {("", "Transpose"), ("", "Cast")}
#: Elements that a byte count of any type is whole for.
_EVEN = 8
_SCALES_INPUT = 2
#: MatMulNBits that computes with int8 activations.
_INT8_ACTIVATIONS = 4


@dataclasses.dataclass(frozen=True)
class WeightMemory:
    """Bytes of the weights of a model.

    Attributes:
        by_type: as they are stored, data files included, by the name of their element type.
        data_files: those of them that lie in data files.
        inside: those of them that the .onnx file holds itself.
        laid_out: what stays beside the stored weights: layouts of matrices that other nodes read too, and what int8
            activations need per block of a weight.
        largest: the largest matrix that is laid out anew: original and layout are there at once while the model is
            opened.
        looked_up: tables in data files of which only the rows of tokens are read: not yet there when the model is open.
    """

    by_type: dict[str, int]
    data_files: int
    inside: int
    laid_out: int
    largest: int
    looked_up: int

    @property
    def stored(self) -> int:
        """Bytes of all weights, as they are stored."""
        return self.data_files + self.inside

    @property
    def resident(self) -> int:
        """Bytes of the weights in memory once the model is open, every page of the data files read."""
        return self.stored + self.inside + self.laid_out


def weight_memory(model: onnx.ModelProto) -> WeightMemory:
    """Add up the tensors of a model; none is loaded.

    Args:
        model: as `read_model_file` gives it, which has checked its data files.
    """
    outside = {reference.tensor: reference.size or 0 for reference in external_references(model)}
    by_type: dict[str, int] = {}
    data_files = inside = 0
    sizes: dict[str, int] = {}
    elements: dict[str, int] = {}
    for tensor in _tensors(model):
        external = tensor.data_location == _EXTERNAL
        size = outside[tensor.name] if external else tensor_bytes(tensor.dims, tensor.data_type)
        sizes[tensor.name], elements[tensor.name] = size, tensor.data_type
        by_type[type_name(tensor.data_type)] = by_type.get(type_name(tensor.data_type), 0) + size
        data_files += size if external else 0
        inside += 0 if external else size
    laid_out, largest = _layouts(model.graph, sizes, elements)
    return WeightMemory(by_type, data_files, inside, laid_out, largest, _looked_up(model.graph, outside))


def tensor_bytes(dims: Iterable[int], element: int) -> int:
    """Bytes of a tensor with this shape and ONNX element type; types of unknown size count as 4 bytes."""
    try:
        item_bytes = float(ir.DataType(element).itemsize)
    except (TypeError, ValueError, KeyError):
        item_bytes = 4.0
    return math.ceil(math.prod(dims) * item_bytes)


def type_name(element: int) -> str:
    """The name of an ONNX element type, such as float32, uint8 or int4."""
    if element == onnx.TensorProto.FLOAT:
        return "float32"
    try:
        return str(ir.DataType(element).name).lower()
    except ValueError:
        return f"type {element}"


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers and the values of Constant nodes of the main graph: of those a decoder has no others that count."""
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _layouts(graph: onnx.GraphProto, sizes: dict[str, int], elements: dict[str, int]) -> tuple[int, int]:
    """Bytes that stay beside the stored weights, and the largest matrix that is laid out anew."""
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    # Turning or widening a constant is done once, when the model is opened, and the result is then laid out.
    computed: dict[str, tuple[str, int]] = {}
    laid_out = largest = 0
    seen: set[str] = set()
    for node in graph.node:
        operator = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if operator in _COMPUTED and node.input and node.output:
            root, size = computed.get(node.input[0], (node.input[0], sizes.get(node.input[0], 0)))
            computed[node.output[0]] = root, size * _widening(node, elements.get(root, 0))
            continue
        place = _PACKED_INPUTS.get(operator)
        if place is None or len(node.input) <= place:
            continue
        name = node.input[place]
        root, size = computed.get(name, (name, sizes.get(name, 0)))
        if root not in sizes:
            continue
        largest = max(largest, size)
        if name not in seen:
            seen.add(name)
            # The original is let go of where nothing else reads it.
            laid_out += size - (sizes[root] if readers[root] == 1 else 0)
        if len(node.input) > _SCALES_INPUT and _accuracy_level(node) == _INT8_ACTIVATIONS:
            # The layout has the scales in it and a sum per block, beside the scales as they are stored.
            laid_out += 2 * sizes.get(node.input[_SCALES_INPUT], 0)
    return laid_out, largest


def _widening(node: onnx.NodeProto, element: int) -> int:
    """How many times as many bytes a constant has after a Cast; 1 for other operators."""
    if node.op_type != "Cast":
        return 1
    to = next((int(attribute.i) for attribute in node.attribute if attribute.name == "to"), element)
    return max(tensor_bytes((_EVEN,), to) // max(tensor_bytes((_EVEN,), element), 1), 1)


def _looked_up(graph: onnx.GraphProto, outside: dict[str, int]) -> int:
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return sum(size for name, size in outside.items() if readers.get(name, set()) == {"Gather"})


def _accuracy_level(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "accuracy_level"), 0)
