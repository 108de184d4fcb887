"""Store the weights of a model in another format: which ones, how, and what to report once they are written."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.block_quantise import BlockQuantisedMatrix
from deltallm_onnx.weights.float16 import HalvedWeight, halve_weight
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.matrices import KeptWeight, WeightMatrix, find_matrices
from deltallm_onnx.weights.quantise_graph import quantise_matrix
from deltallm_onnx.weights.quantised import quantised_operators
from deltallm_onnx.weights.report import LeftWeight, StoredMatrix, WeightsReport


def refuse_quantised(model: ir.Model, where: str) -> None:
    """Refuse to store quantised weights in another format: what was rounded away does not come back.

    Args:
        model: its main graph and subgraphs are looked at.
        where: what the user calls it.

    Raises:
        DeltaLLMError: naming the operators.
    """
    found = quantised_operators(node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))
    if found:
        raise DeltaLLMError(
            f"The weights of {where} are quantised already ({found}): leave out --weights, or give the float model it "
            "was made from."
        )


def store_weights(model: ir.Model, weight_format: WeightFormat, where: str) -> Callable[[], WeightsReport]:
    """Change the storage of every weight matrix, in place; the new tensors are made when the model is written.

    Args:
        model: float32 weights; they are read while the model is written, not before.
        weight_format: any but float32.
        where: what the user calls the model.

    Returns:
        What makes the report, once the model has been written.

    Raises:
        DeltaLLMError: where there is no weight to store.
    """
    graph = model.graph
    matrices, kept = find_matrices(graph)
    if weight_format.name == "float16":
        stacked = [weight for weight in kept if _is_stacked(weight)]
        kept = [weight for weight in kept if weight not in stacked]
        values = [matrix.value for matrix in matrices] + [weight.value for weight in stacked]
        _refuse_none(values, kept, weight_format, where)
        return _report(weight_format, [_halve(graph, value) for value in values], kept)
    _refuse_none(matrices, kept, weight_format, where)
    return _report(weight_format, [_quantise(graph, matrix, weight_format) for matrix in matrices], kept)


def _is_stacked(weight: KeptWeight) -> bool:
    tensor = weight.value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) > 2


def _refuse_none(
    found: list[ir.Value] | list[WeightMatrix], kept: list[KeptWeight], to: WeightFormat, where: str
) -> None:
    if not found:
        first = f" (the first of {len(kept)} others, {kept[0].value.name}, is {kept[0].reason})" if kept else ""
        raise DeltaLLMError(f"{where} has no float32 weight matrix to store as {to.name}{first}: leave out --weights.")


def _halve(graph: ir.Graph, value: ir.Value) -> Callable[[], StoredMatrix]:
    halved: HalvedWeight = halve_weight(graph, value)
    name = str(value.name).removesuffix("_transposed")
    return lambda: _stored(name, halved.tensor.size, halved.tensor.nbytes, halved)


def _quantise(graph: ir.Graph, matrix: WeightMatrix, weight_format: WeightFormat) -> Callable[[], StoredMatrix]:
    quantised = quantise_matrix(graph, matrix, weight_format)
    tensors = [quantised.codes, quantised.scales, quantised.zero_points]
    size = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    rows, columns = quantised.shape
    return lambda: _stored(matrix.name, rows * columns, size, quantised)


def _stored(name: str, parameters: int, size: int, made: BlockQuantisedMatrix | HalvedWeight) -> StoredMatrix:
    if made.error is None:
        raise RuntimeError(f"the weight {name} has not been written")
    return StoredMatrix(name, parameters, size, made.error)


def _report(
    weight_format: WeightFormat, stored: list[Callable[[], StoredMatrix]], kept: list[KeptWeight]
) -> Callable[[], WeightsReport]:
    left = tuple(LeftWeight(str(weight.value.name), weight.parameters, weight.reason) for weight in kept)
    return lambda: WeightsReport(weight_format, tuple(matrix() for matrix in stored), left)
