"""The shape of every tensor in one call of a decoder.

Shapes come from the file's own annotations, from ONNX shape inference at the sizes of the call, and, behind operators
that neither knows, from rules for the operators of decoders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import onnx

Shape = tuple[int, ...]
_FLOAT = onnx.TensorProto.FLOAT
#: Initializers up to so many elements are kept for shape inference: shapes, axes and the like.
_SMALL = 64
#: Operators whose result is float32 whatever comes first among their inputs.
_FLOAT_RESULTS = ("Gather", "GatherBlockQuantized", "MatMulNBits")


@dataclasses.dataclass(frozen=True)
class CallSizes:
    """Sizes of one call.

    Attributes:
        batch: B.
        new_tokens: S.
        total_tokens: T, with the past.
    """

    batch: int
    new_tokens: int
    total_tokens: int


def call_shapes(model: onnx.ModelProto, sizes: CallSizes) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and ONNX element types of every value of the main graph.

    Args:
        model: a decoder with conventional names (`read_signature`); its weights are not looked at.
        sizes: of the call.
    """
    shapes, elements = _annotated(model, sizes)
    constants = _small_constants(model.graph)
    for node in model.graph.node:
        _complete(node, shapes, elements, constants, sizes)
    return shapes, elements


def _annotated(model: onnx.ModelProto, sizes: CallSizes) -> tuple[dict[str, Shape], dict[str, int]]:
    """What the file says, or shape inference finds."""
    graph = model.graph
    names = _symbols(graph, sizes)
    bare = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = "shapes"
    bare.graph.node.extend(graph.node)
    shapes: dict[str, Shape] = {}
    elements: dict[str, int] = {}
    for tensor in graph.initializer:
        shapes[tensor.name], elements[tensor.name] = tuple(tensor.dims), tensor.data_type
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for values, kept in ((graph.input, bare.graph.input), (graph.output, bare.graph.output), (graph.value_info, None)):
        for value in values:
            shape = _concrete(value, names)
            if value.name in shapes:
                continue
            elements[value.name] = value.type.tensor_type.elem_type
            if shape is not None:
                shapes[value.name] = shape
            known = onnx.helper.make_tensor_value_info(value.name, elements[value.name], shape)
            (bare.graph.value_info if kept is None else kept).append(known)
    for value in _inferred(bare):
        shape = _concrete(value, names)
        elements.setdefault(value.name, value.type.tensor_type.elem_type)
        if shape is not None:
            shapes.setdefault(value.name, shape)
    return shapes, elements


def _inferred(model: onnx.ModelProto) -> Sequence[onnx.ValueInfoProto]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001  # its exceptions share no base class; what it does not know the rules below do
        return ()
    return (*inferred.graph.value_info, *inferred.graph.output)


def _symbols(graph: onnx.GraphProto, sizes: CallSizes) -> dict[str, int]:
    """The sizes behind the names of dimensions, by where the conventional inputs have them."""
    places = {
        "input_ids": (sizes.batch, sizes.new_tokens),
        "position_ids": (sizes.batch, sizes.new_tokens),
        "attention_mask": (sizes.batch, sizes.total_tokens),
    }
    found: dict[str, int] = {}
    for value in graph.input:
        past = value.name.startswith("past_key_values.")
        known = (sizes.batch, 0, max(sizes.total_tokens - sizes.new_tokens, 0)) if past else places.get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim, known, strict=False):
            if dim.dim_param:
                found.setdefault(dim.dim_param, size)
    return found


def _concrete(value: onnx.ValueInfoProto, names: Mapping[str, int]) -> Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    # Some exporters write −1 for a dimension that is not fixed.
    fixed = [dim.HasField("dim_value") and dim.dim_value >= 0 for dim in tensor.shape.dim]
    pairs = zip(tensor.shape.dim, fixed, strict=True)
    dims = [dim.dim_value if known else names.get(dim.dim_param) for dim, known in pairs]
    known = [dim for dim in dims if dim is not None]
    return tuple(known) if len(known) == len(dims) else None


def _small_constants(graph: onnx.GraphProto) -> dict[str, Shape]:
    """The values of small integer initializers: what Reshape goes by."""
    found = {}
    for tensor in graph.initializer:
        small = tensor.data_type == onnx.TensorProto.INT64 and 0 < math.prod(tensor.dims) <= _SMALL
        if small and tensor.data_location != onnx.TensorProto.EXTERNAL:
            with contextlib.suppress(ValueError):  # fewer values than its shape says: running the model is refused
                found[tensor.name] = tuple(int(value) for value in onnx.numpy_helper.to_array(tensor).flat)
    return found


def _complete(
    node: onnx.NodeProto,
    shapes: dict[str, Shape],
    elements: dict[str, int],
    constants: Mapping[str, Shape],
    sizes: CallSizes,
) -> None:
    """Give outputs of unknown shape one by the rules of decoders: at worst that of the largest input."""
    for name in node.output:
        if not name:
            continue
        if name not in shapes:
            shapes[name] = _by_rule(node, shapes, constants, sizes)
        if not elements.get(name):
            inputs = [elements[i] for i in node.input if elements.get(i)]
            elements[name] = inputs[0] if inputs and node.op_type not in _FLOAT_RESULTS else _FLOAT


def _by_rule(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: Mapping[str, Shape], sizes: CallSizes
) -> Shape:
    inputs = [shapes.get(name, ()) for name in node.input]
    first = inputs[0] if inputs else ()
    rule = _RULES.get(node.op_type)
    if rule is None or len(inputs) < _LEAST_INPUTS.get(node.op_type, 1):
        # Elementwise operators, norms, rotations: no larger than what goes in.
        return max(inputs, key=math.prod, default=())
    attributes = {attribute.name: int(attribute.i) for attribute in node.attribute}
    return rule(_Known(node, first, inputs, attributes, constants, sizes))


@dataclasses.dataclass(frozen=True)
class _Known:
    """What a rule may look at."""

    node: onnx.NodeProto
    first: Shape
    inputs: Sequence[Shape]
    attributes: Mapping[str, int]
    constants: Mapping[str, Shape]
    sizes: CallSizes

    @property
    def tokens(self) -> Shape:
        return self.sizes.batch, self.sizes.new_tokens


def _product(known: _Known) -> Shape:
    columns = known.inputs[1][-1] if known.inputs[1] else 1
    return (*(known.first[:-1] or known.tokens), columns)


def _coded_product(known: _Known) -> Shape:
    return (*(known.first[:-1] or known.tokens), known.attributes.get("N", 1))


def _gathered(known: _Known) -> Shape:
    return (*(known.inputs[1] or known.tokens), *known.first[1:])


def _gathered_codes(known: _Known) -> Shape:
    # Codes of fewer than 8 bits lie side by side in bytes.
    codes = math.prod(known.first[1:]) * 8 // (known.attributes.get("bits") or 4)
    return (*(known.inputs[1] or known.tokens), codes)


def _reshaped(known: _Known) -> Shape:
    """0 keeps a dimension, −1 takes what is left."""
    to = known.constants.get(known.node.input[1], known.first)
    dims = [known.first[at] if size == 0 and at < len(known.first) else size for at, size in enumerate(to)]
    fixed = math.prod(dim for dim in dims if dim > 0)
    return tuple(math.prod(known.first) // max(fixed, 1) if dim < 0 else dim for dim in dims)


def _attended(known: _Known) -> Shape:
    query, node = known.first, known.node
    if len(query) != _FLAT_RANK or (len(node.input) > 1 and node.input[1]):
        return query
    heads, kv_heads = known.attributes.get("num_heads", 0), known.attributes.get("kv_num_heads", 0)
    # Queries, keys and values side by side.
    return (*known.tokens, query[2] * heads // max(heads + 2 * kv_heads, 1))


def _of_shape(known: _Known) -> Shape:
    return (len(known.first),)


_FLAT_RANK = 3
_RULES: Mapping[str, Callable[[_Known], Shape]] = {
    "Shape": _of_shape,
    "Size": lambda _known: (),
    "MatMul": _product,
    "Gemm": _product,
    "FusedMatMul": _product,
    "MatMulNBits": _coded_product,
    "Gather": _gathered,
    "GatherBlockQuantized": _gathered_codes,
    "Reshape": _reshaped,
    "Attention": _attended,
    "GroupQueryAttention": _attended,
    "MultiHeadAttention": _attended,
    "DeltaAttention": _attended,
}
_LEAST_INPUTS = dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "Gather", "GatherBlockQuantized", "Reshape"), 2)
