"""Check where a model's external tensors live before anything opens them.

An .onnx file names its weight files itself, so a foreign file could name any path on the machine. Only ordinary files
below the model's own directory are accepted, reached without a symbolic link, and large enough for what is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class ExternalReference:
    """One tensor stored outside the .onnx file.

    Attributes:
        tensor: the tensor's name.
        location: path as written in the model.
        offset: first byte inside the file.
        size: bytes read from there; None where the model leaves it to the element type and the type is unknown.
    """

    tensor: str
    location: str
    offset: int
    size: int | None


def check_external_data(model: onnx.ModelProto | ir.Model, base_dir: Path) -> list[Path]:
    """Refuse external data that is not a plain file inside the model's directory.

    Args:
        model: the model, its external tensors not loaded.
        base_dir: directory of the .onnx file; locations are relative to it.

    Returns:
        The distinct data files, in the order the model names them.

    Raises:
        DeltaLLMError: for an absolute location, one with '..', one that passes a symbolic link, a missing or irregular
            file, a malformed offset or length, or a range that ends behind the file.
    """
    files: dict[Path, int] = {}
    for reference in external_references(model):
        path = _resolve(reference, base_dir)
        if path not in files:
            files[path] = path.stat().st_size
        end = reference.offset + (reference.size or 0)
        if end > files[path]:
            raise DeltaLLMError(
                f"Tensor {reference.tensor!r} ends at byte {end} of {path}, which has {files[path]}: "
                "the data file is cut short or belongs to another model; copy it again."
            )
    return list(files)


def external_references(model: onnx.ModelProto | ir.Model) -> Iterator[ExternalReference]:
    """Every external tensor of the main graph, its subgraphs, its functions and their attributes."""
    if isinstance(model, onnx.ModelProto):
        for tensor in _proto_tensors(model):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield _proto_reference(tensor)
    else:
        for tensor_ir in _ir_tensors(model):
            if isinstance(tensor_ir, ir.ExternalTensor):
                yield _ir_reference(tensor_ir)


def _resolve(reference: ExternalReference, base_dir: Path) -> Path:
    """The data file on disk, or a refusal."""
    where = f"Tensor {reference.tensor!r} has its data in {reference.location!r}"
    # protobuf hands out bytes where a text field is not valid UTF-8.
    if not isinstance(reference.location, str):
        raise DeltaLLMError(f"{where}, which is not a file name in UTF-8: the model is damaged.")
    # Both path flavours, so that a file written for one system is refused on every system.
    posix, windows = PurePosixPath(reference.location), PureWindowsPath(reference.location)
    if not reference.location or posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise DeltaLLMError(f"{where}, which is not a relative path: only files beside the model are read.")
    if ".." in posix.parts or ".." in windows.parts:
        raise DeltaLLMError(f"{where}, which leaves the model's directory: only files beside the model are read.")
    path = base_dir
    for part in posix.parts:
        path = path / part
        if path.is_symlink():
            raise DeltaLLMError(
                f"{where}, and {path} is a symbolic link: replace it by the file itself; links are not followed."
            )
    if not path.is_file():
        raise DeltaLLMError(f"{where}, but {path} is not there: copy the data file next to the model.")
    return path


def _proto_reference(tensor: onnx.TensorProto) -> ExternalReference:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = _byte_count(entries.get("offset", "0"), "offset", tensor.name)
    length = entries.get("length")
    size = _dense_size(tensor) if length is None else _byte_count(length, "length", tensor.name)
    return ExternalReference(tensor.name, entries.get("location", ""), offset, size)


def _byte_count(text: str, what: str, tensor: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DeltaLLMError(f"Tensor {tensor!r} has the external data {what} {text[:40]!r}: a byte count is needed.")
    return int(text)


def _dense_size(tensor: onnx.TensorProto) -> int | None:
    """Bytes of the tensor as laid out in a file, by shape and element type."""
    if any(dim < 0 for dim in tensor.dims):
        raise DeltaLLMError(f"Tensor {tensor.name!r} has the shape {list(tensor.dims)}: sizes cannot be negative.")
    try:
        item_bytes = float(ir.DataType(tensor.data_type).itemsize)
    except (TypeError, ValueError, KeyError):
        return None
    size: int = math.ceil(math.prod(tensor.dims) * item_bytes)
    return size


def _ir_reference(tensor: ir.ExternalTensor) -> ExternalReference:
    offset = tensor.offset or 0
    size = tensor.nbytes if tensor.length is None else tensor.length
    for what, value in (("offset", offset), ("length", size)):
        if value < 0:
            raise DeltaLLMError(f"Tensor {tensor.name!r} has the external data {what} {value}: a byte count is needed.")
    return ExternalReference(tensor.name or "", str(tensor.location), offset, size)


def _proto_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _proto_graph_tensors(model.graph)
    for function in model.functions:
        yield from _proto_node_tensors(function.node)


def _proto_graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _proto_node_tensors(graph.node)


def _proto_node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = [*attribute.sparse_tensors]
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
            for sparse in sparse_tensors:
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _proto_graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _proto_graph_tensors(graph)


def _ir_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    yield from _ir_graph_tensors(model.graph)
    for function in model.functions.values():
        yield from _ir_node_tensors(function)


def _ir_graph_tensors(graph: ir.Graph) -> Iterator[ir.TensorProtocol]:
    for value in graph.initializers.values():
        if value.const_value is not None:
            yield value.const_value
    yield from _ir_node_tensors(graph)


def _ir_node_tensors(nodes: Iterable[ir.Node]) -> Iterator[ir.TensorProtocol]:
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()
            elif attribute.type == ir.AttributeType.GRAPH:
                yield from _ir_graph_tensors(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for graph in attribute.as_graphs():
                    yield from _ir_graph_tensors(graph)
