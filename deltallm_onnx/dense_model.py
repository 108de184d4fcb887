"""Open a dense .onnx file for rewriting, with its weights left on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.external_data import check_external_data
from deltallm_onnx.runtime.model_file import read_model_file


@dataclasses.dataclass(frozen=True)
class DenseModel:
    """A model file that was read and checked.

    Attributes:
        path: the .onnx file.
        model: its graph; external weights are memory-mapped when they are written, never loaded as a whole.
        data_files: the files its weights lie in; empty where the .onnx file holds them itself.
        sha256: of the .onnx file, in hex. Weights in a data file are not part of it.
    """

    path: Path
    model: ir.Model
    data_files: tuple[Path, ...]
    sha256: str


def open_dense_model(path: Path) -> DenseModel:
    """Read an .onnx file.

    Raises:
        DeltaLLMError: where it is missing, unreadable, cut short or malformed, and where its external data is not a
            plain file inside the model's directory, or does not fit the tensors.
    """
    if path.is_symlink():
        # Its weights would be looked for beside the file it leads to.
        raise DeltaLLMError(f"{path} is a symbolic link: give the file itself; links are not followed.")
    proto = read_model_file(path)
    try:
        with quiet():
            model = ir.serde.deserialize_model(proto)
    except Exception as error:
        # The deserializer has no error type of its own: whatever it raises, the file is at fault.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise DeltaLLMError(f"{path} is not a well-formed ONNX model ({reason[:200]}): export it again.") from error
    del proto
    folder = path.resolve().parent
    data_files = check_external_data(model, folder)
    for tensor in _external_initializers(model):
        _check_length(tensor, path)
    ir.external_data.set_base_dir(model.graph, folder)
    return DenseModel(path, model, tuple(data_files), file_sha256(path))


def _check_length(tensor: ir.ExternalTensor, path: Path) -> None:
    """Refuse a tensor that would be copied with more or fewer bytes than it has."""
    try:
        size = tensor.nbytes
    except TypeError as error:
        raise DeltaLLMError(
            f"Tensor {tensor.name!r} of {path} has the type {tensor.dtype}, which has no size: export the model again."
        ) from error
    if tensor.length is not None and tensor.length != size:
        raise DeltaLLMError(
            f"Tensor {tensor.name!r} of {path} is {size} bytes large by its shape and type, and {tensor.length} by its "
            f"entry for {str(tensor.location)!r}: export the model again."
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the graph library's warnings about malformed models off the terminal: they are refused with a sentence."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _external_initializers(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def refuse_external_attributes(dense: DenseModel) -> None:
    """Refuse external tensors inside node attributes: they cannot be carried over to another data file.

    Raises:
        DeltaLLMError: naming the node.
    """
    for node in ir.traversal.RecursiveGraphIterator(dense.model.graph):
        for attribute in node.attributes.values():
            if not attribute.is_ref() and isinstance(attribute.value, ir.ExternalTensor):
                raise DeltaLLMError(
                    f"Node {node.name!r} of {dense.path} keeps its attribute {attribute.name} in "
                    f"{str(attribute.value.location)!r}: make it an initializer."
                )


def file_sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
