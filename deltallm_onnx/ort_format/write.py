"""Write an .onnx model in ONNX Runtime's own format, as ONNX Runtime's `convert_onnx_models_to_ort` does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, get_args

import onnx
import onnxruntime as ort

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_writable, staged
from deltallm_onnx.external_data import external_references
from deltallm_onnx.ort_format.required_operators import write_required_operators
from deltallm_onnx.preflight import check_disk
from deltallm_onnx.runtime.library import ops_library_path, register
from deltallm_onnx.runtime.model_file import ORT_SUFFIX, read_model_file
from deltallm_onnx.runtime.session_options import reason, session_options
from deltallm_onnx.runtime.signature import DOMAIN, operators_without_function

#: How an .ort runs delta attention: by the kernels of the operator library, or by the functions' bodies, written out.
OrtForm = Literal["operator", "fallback"]
#: What the optimizations that are frozen into an .ort may suppose of the processor.
OrtPlatform = Literal["arm", "amd64"]

#: Bytes of the largest .ort: offsets in a flatbuffer have 31 bits, and the graph needs some beside its weights.
LARGEST_MODEL = 2**31 - 2**20

# It lays out convolutions for the processor at hand: only where that is the target's kind.
_LAYOUT_OF_AMD64 = "NchwcTransformer"


@dataclasses.dataclass(frozen=True)
class OrtFiles:
    """What `write_ort` wrote.

    Attributes:
        model: the .ort.
        required_operators: for a minimal build of ONNX Runtime, its option `--include_ops_by_config`.
    """

    model: Path
    required_operators: Path


def write_ort(
    source: Path,
    target: Path,
    *,
    form: OrtForm = "operator",
    platform: OrtPlatform | None = None,
    library: Path | None = None,
) -> OrtFiles:
    """Write a model as one .ort file, weights included, with the optimizations of ONNX Runtime frozen in.

    Beside it comes `<stem>.required_operators.config`, the kernels of ONNX Runtime that the model needs. Both appear
    together or not at all. The conversion takes memory for the weights about twice.

    Args:
        source: an .onnx file, dense or rewritten.
        target: the .ort file to write.
        form: "operator" calls the kernels of the operator library, and cannot run without it. "fallback" has the
            functions' bodies written out in standard operators: slow, and it never uses the library.
        platform: the kind of processor that will run the model; None lets it be any.
        library: the operator library of this machine that the converting session registers; by default that of
            `ops_library_path`. Not needed for "fallback" and for dense models.

    Returns:
        The two files.

    Raises:
        DeltaLLMError: for a model that cannot be read, has more than 2 GB, or has no function bodies for "fallback"
            (packed caches never do), for a missing library, and for a target that cannot be written.
    """
    _check_request(target, form, platform)
    proto = read_model_file(source)
    uses_operators = any(node.domain == DOMAIN for node in proto.graph.node)
    _check_form(proto, source, form)
    size = _size(proto)
    if size > LARGEST_MODEL:
        raise _too_large(source, size)
    del proto
    check_disk(target.parent, size, "The .ort")
    options = session_options()
    if form == "operator" and uses_operators:
        register(options, ops_library_path() if library is None else library)
    with staged(target) as folder:
        written = folder / target.name
        _freeze(source, written, options, platform)
        if written.stat().st_size > LARGEST_MODEL:
            raise _too_large(source, written.stat().st_size)
        config = target.with_name(f"{target.stem}.required_operators.config")
        write_required_operators(written, folder / config.name)
    return OrtFiles(target, config)


def _check_request(target: Path, form: str, platform: str | None) -> None:
    for what, value, choices in (("form", form, OrtForm), ("platform", platform, OrtPlatform)):
        if value is not None and value not in get_args(choices):
            raise DeltaLLMError(f"The {what} of an .ort is {value!r}: choose one of {', '.join(get_args(choices))}.")
    check_writable(target)
    if target.suffix != ORT_SUFFIX:
        raise DeltaLLMError(f"{target} does not end in .ort, by which ONNX Runtime tells its own format: rename it.")


def _check_form(proto: onnx.ModelProto, source: Path, form: OrtForm) -> None:
    missing = operators_without_function(proto)
    if form == "fallback" and missing:
        raise DeltaLLMError(
            f"{source} has no function body for {', '.join(missing)}, so nothing can be written out in its place: "
            "choose the form operator, or convert the model with a float32 or float16 cache."
        )


def _size(proto: onnx.ModelProto) -> int:
    """Bytes of the graph and of all weights, wherever they lie."""
    return int(proto.ByteSize()) + sum(reference.size or 0 for reference in external_references(proto))


def _too_large(source: Path, size: int) -> DeltaLLMError:
    return DeltaLLMError(
        f"{source} has {byte_text(size)} with its weights, and an .ort holds at most {byte_text(LARGEST_MODEL)}: keep "
        "the .onnx, which keeps its weights in a file of their own, or convert with smaller --weights."
    )


def _freeze(source: Path, target: Path, options: ort.SessionOptions, platform: OrtPlatform | None) -> None:
    """Open the model in a session that writes down what it would run."""
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    # Nothing is run here, and matrices laid out for kernels would take the memory of the weights once more.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.qdqisint8allowed", "1" if platform == "arm" else "0")
    left_out = [] if platform == "amd64" else [_LAYOUT_OF_AMD64]
    try:
        ort.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=left_out or None
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise DeltaLLMError(f"ONNX Runtime {ort.__version__} cannot convert {source}: {reason(error)}") from error
