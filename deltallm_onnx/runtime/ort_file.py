"""Read the graph of an .ort file, ONNX Runtime's own format, without its weights.

Format: onnxruntime/core/flatbuffers/schema/ort.fbs. The classes that read it are those of ONNX Runtime's own package.
"""

from __future__ import annotations

import functools
import logging
import mmap
from pathlib import Path
from typing import Any

import onnx

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.library import LIBRARY_NAMES
from deltallm_onnx.runtime.model_file import ORT_SUFFIX, check_model_path, read_model_file

#: Bytes of names, small tensors and entries that are taken from a file, many times more than any model has: counts
#: of a damaged one may be anything, and a hostile one may name the same bytes a million times.
_MOST_BYTES = 1 << 28
#: What an entry of a list counts as, for the object that it becomes.
_ENTRY_BYTES = 64
#: Bytes of a tensor that is read, as thresholds and row weights are; of larger ones the shape is.
_SMALL_TENSOR = 1 << 20

_ATTRIBUTE = onnx.AttributeProto  # the schema's numbers for types of attributes and of elements are ONNX's


def read_graph(path: Path) -> onnx.ModelProto:
    """The graph of an .onnx or .ort file; its weights stay in the file.

    Args:
        path: of the model; by the suffix .ort ONNX Runtime tells its own format, and so do we.

    Raises:
        DeltaLLMError: as `read_model_file` and `read_ort_file`.
    """
    return read_ort_file(path) if path.suffix == ORT_SUFFIX else read_model_file(path)


def read_ort_file(path: Path) -> onnx.ModelProto:
    """The graph of an .ort file as a ModelProto: inputs, outputs, nodes, known shapes and metadata.

    Tensors have their data where it is small. Attributes that are tensors or graphs are left out, and there are no
    function bodies: a conversion to .ort calls kernels or writes bodies out.

    Args:
        path: an .ort file.

    Raises:
        DeltaLLMError: for a missing or unreadable file, and for one that is not an .ort model or is cut short.
    """
    check_model_path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _GraphReader(_schema()).model(data)
    except OSError as error:
        raise DeltaLLMError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:
        # The reading classes check nothing themselves: an offset outside the file fails in any of several ways.
        raise DeltaLLMError(
            f"{path} is not an .ort model, or is cut short: write it again or copy it again."
        ) from error


def required_operators(path: Path) -> dict[tuple[str, int], set[str]]:
    """Operators of an .ort, subgraphs included: (domain, version that a kernel is registered for) → names.

    Args:
        path: an .ort file that ONNX Runtime has written or opened: it is not checked here.
    """
    schema = _schema()
    needed: dict[tuple[str, int], set[str]] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pending = [schema.InferenceSession.InferenceSession.GetRootAs(data, 0).Model().Graph()]
        while pending:
            graph = pending.pop()
            for node in map(graph.Nodes, range(graph.NodesLength())):
                domain = (node.Domain() or b"").decode() or "ai.onnx"
                needed.setdefault((domain, node.SinceVersion()), set()).add(node.OpType().decode())
                attributes = map(node.Attributes, range(node.AttributesLength()))
                pending += [found.G() for found in attributes if found.Type() == _ATTRIBUTE.GRAPH]
    return needed


def kernels_needed(path: Path, problem: str | None = None) -> DeltaLLMError:
    """The refusal to run an .ort whose kernels are not there; nothing else in it could stand in for them.

    Args:
        path: an .ort that calls kernels of the operator library.
        problem: why the library is not there, one sentence; None where the caller does not want it.
    """
    cure = "leave out --no-library, or write the model with --ort-form fallback"
    if problem is not None:
        cure = f"make it available, or write the model with --ort-form fallback ({problem.rstrip('.')})"
    return DeltaLLMError(
        f"{path} calls kernels of the operator library {LIBRARY_NAMES[0]}, which "
        "SessionOptions.register_custom_ops_library registers (RegisterCustomOpsLibrary_V2 in C), and has no function "
        f"bodies: {cure}."
    )


@functools.cache
def _schema() -> Any:
    """ONNX Runtime's classes for ort.fbs."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    # Lazily: 40 modules that only .ort files need.
    from onnxruntime.tools.ort_format_model import ort_model_processor  # noqa: PLC0415

    root.handlers[:] = handlers  # the import sets up logging for the whole process
    return ort_model_processor.fbs


class _GraphReader:
    """Turns the tables of one file into messages of ONNX.

    Args:
        schema: the classes for ort.fbs.
    """

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._left = _MOST_BYTES

    def model(self, data: mmap.mmap) -> onnx.ModelProto:
        """The model of a whole file.

        Raises:
            Exception: of any kind where the file is damaged.
        """
        text, counted = self._text, self._counted
        session = self._schema.InferenceSession.InferenceSession
        if not session.InferenceSessionBufferHasIdentifier(data, 0):
            raise ValueError(data)
        source = session.GetRootAs(data, 0).Model()
        model = onnx.ModelProto(ir_version=source.IrVersion(), producer_name=text(source.ProducerName()))
        for index in counted(source.MetadataPropsLength()):
            entry = source.MetadataProps(index)
            model.metadata_props.add(key=text(entry.Key()), value=text(entry.Value()))
        graph = source.Graph()
        found = [self._value(graph.NodeArgs(index)) for index in counted(graph.NodeArgsLength())]
        values = {value.name: value for value in found}
        inputs = [text(graph.Inputs(index)) for index in counted(graph.InputsLength())]
        outputs = [text(graph.Outputs(index)) for index in counted(graph.OutputsLength())]
        model.graph.input.extend(values[name] for name in inputs)
        model.graph.output.extend(values[name] for name in outputs)
        model.graph.value_info.extend(value for name, value in values.items() if name not in {*inputs, *outputs})
        model.graph.initializer.extend(
            self._tensor(graph.Initializers(index)) for index in counted(graph.InitializersLength())
        )
        model.graph.node.extend(self._node(graph.Nodes(index)) for index in counted(graph.NodesLength()))
        used = {"", *(node.domain for node in model.graph.node)}
        for index in counted(source.OpsetImportLength()):
            entry = source.OpsetImport(index)
            if (domain := text(entry.Domain())) in used:  # ONNX Runtime writes every domain that it knows
                model.opset_import.add(domain=domain, version=entry.Version())
        return model

    def _value(self, source: Any) -> onnx.ValueInfoProto:
        """Name, element type and shape; the type stays open where it is no tensor's, or not known."""
        value = onnx.ValueInfoProto(name=self._text(source.Name()))
        kind = source.Type()
        if kind is None or kind.ValueType() != self._schema.TypeInfoValue.TypeInfoValue.tensor_type:
            return value
        table = kind.Value()
        tensor = self._schema.TensorTypeAndShape.TensorTypeAndShape()
        tensor.Init(table.Bytes, table.Pos)
        value.type.tensor_type.elem_type = tensor.ElemType()
        shape = tensor.Shape()
        if shape is None:
            return value
        kinds = self._schema.DimensionValueType.DimensionValueType
        value.type.tensor_type.shape.SetInParent()  # a scalar has a shape, of no dimensions
        for index in self._counted(shape.DimLength()):
            dim, found = value.type.tensor_type.shape.dim.add(), shape.Dim(index).Value()
            if found is not None and found.DimType() == kinds.VALUE:
                dim.dim_value = found.DimValue()
            elif found is not None and found.DimType() == kinds.PARAM:
                dim.dim_param = self._text(found.DimParam())
        return value

    def _tensor(self, source: Any) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=self._text(source.Name()), data_type=source.DataType())
        tensor.dims.extend(source.Dims(index) for index in self._counted(source.DimsLength()))
        if 0 < source.RawDataLength() <= _SMALL_TENSOR:
            self._spend(source.RawDataLength())
            tensor.raw_data = source.RawDataAsNumpy().tobytes()
        return tensor

    def _node(self, source: Any) -> onnx.NodeProto:
        text, counted = self._text, self._counted
        node = onnx.NodeProto(name=text(source.Name()), op_type=text(source.OpType()), domain=text(source.Domain()))
        node.input.extend(text(source.Inputs(index)) for index in counted(source.InputsLength()))
        node.output.extend(text(source.Outputs(index)) for index in counted(source.OutputsLength()))
        for index in counted(source.AttributesLength()):
            found = source.Attributes(index)
            attribute = onnx.AttributeProto(name=text(found.Name()), type=found.Type())
            match found.Type():
                case _ATTRIBUTE.FLOAT:
                    attribute.f = found.F()
                case _ATTRIBUTE.INT:
                    attribute.i = found.I()
                case _ATTRIBUTE.STRING:
                    attribute.s = self._bytes(found.S())
                case _ATTRIBUTE.FLOATS:
                    attribute.floats.extend(found.Floats(at) for at in counted(found.FloatsLength()))
                case _ATTRIBUTE.INTS:
                    attribute.ints.extend(found.Ints(at) for at in counted(found.IntsLength()))
                case _ATTRIBUTE.STRINGS:
                    attribute.strings.extend(self._bytes(found.Strings(at)) for at in counted(found.StringsLength()))
                case _:
                    continue
            node.attribute.append(attribute)
        return node

    def _counted(self, count: int) -> range:
        """The indices of a list."""
        self._spend(count * _ENTRY_BYTES)
        return range(count)

    def _text(self, value: bytes | None) -> str:
        return self._bytes(value).decode("utf-8")

    def _bytes(self, value: bytes | None) -> bytes:
        """A string of the file; absent ones are empty."""
        self._spend(len(value or b""))
        return value or b""

    def _spend(self, size: int) -> None:
        """Count bytes against what a model may have.

        Raises:
            ValueError: for more than that.
        """
        self._left -= size
        if self._left < 0:
            raise ValueError(size)
