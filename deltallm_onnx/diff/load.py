"""Reading what is compared: a file, a ModelProto or an ir.Model. Weights stay where they are."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]  # protobuf ships no types

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.model_file import refuse_ort_format

ModelSource = str | os.PathLike[str] | ir.Model | onnx.ModelProto


def load(source: ModelSource, which: str) -> ir.Model:
    """Load a model without its external data.

    Args:
        source: path of an ONNX file, an ir.Model (taken as it is) or a ModelProto.
        which: "the first model" or "the second model", for refusals of models without a path.

    Raises:
        DeltaLLMError: if the file is missing or no complete, well-formed ONNX model.
    """
    if isinstance(source, ir.Model):
        return source
    if isinstance(source, onnx.ModelProto):
        return _deserialize(source, which, base_dir="")
    path = Path(source)
    if path.is_dir():
        raise DeltaLLMError(f"{path} is a directory: name the .onnx file in it.")
    if not path.is_file():
        raise DeltaLLMError(f"There is no file {path}: give the path of an ONNX model.")
    refuse_ort_format(path)
    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise DeltaLLMError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:
        # Every text and binary format of onnx.load has its own error class; all mean the same to a user.
        raise DeltaLLMError(f"{path} is not an ONNX model, or is cut off: export or copy it again.") from error
    return _deserialize(proto, str(path), base_dir=os.fspath(path.parent))


def _deserialize(proto: onnx.ModelProto, where: str, *, base_dir: str) -> ir.Model:
    # Any bytes that happen to parse, an empty file included, give a ModelProto: ask for what every model has.
    if not proto.HasField("graph") or not proto.opset_import:
        missing = "graph" if not proto.HasField("graph") else "operator set"
        raise DeltaLLMError(f"{where} holds no {missing}, so it is no complete ONNX model: export or copy it again.")
    _refuse_unreadable(proto, where)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause) or type(cause).__name__).splitlines()[0].rstrip(".")
        raise DeltaLLMError(f"{where} is no well-formed ONNX model ({reason}): export it again.") from error
    for tensor in _external_tensors(model):
        tensor.base_dir = base_dir
    return model


def _refuse_unreadable(proto: onnx.ModelProto, where: str) -> None:
    pending: list[Message] = [proto]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.SparseTensorProto):
            raise DeltaLLMError(f"{where} holds sparse tensors, which are not compared: export it with dense ones.")
        for value in _fields(message):
            # The protobuf library hands out text that is not UTF-8 as bytes.
            if isinstance(value, bytes):
                raise DeltaLLMError(f"{where} holds a name that is not UTF-8 ({value!r:.40}): export or copy it again.")
            if isinstance(value, Message):
                pending.append(value)


def _fields(message: Message) -> Iterable[object]:
    """Texts and messages of a message, not the numbers and not the data of tensors."""
    if isinstance(message, onnx.TensorProto):
        return [message.name, *message.external_data]
    found: list[object] = []
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING:
            found.extend([value] if isinstance(value, str | bytes) else value)
        elif field.type == field.TYPE_MESSAGE:
            found.extend([value] if isinstance(value, Message) else value)
    return found


def _external_tensors(model: ir.Model) -> Iterable[ir.ExternalTensor]:
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
    for graph in model.graph.subgraphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
