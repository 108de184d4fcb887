"""`export_model`: the steps of an export, in order."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import check_model_path, staged
from deltallm_onnx.export.report import ExportReport
from deltallm_onnx.export.source import ModelSource
from deltallm_onnx.preflight import (
    BESIDE_DATA,
    check_disk,
    check_memory,
    export_disk,
    export_memory,
    free_disk,
    stored_shapes,
    ternary_shapes,
)
from deltallm_onnx.weights.formats import WeightFormat

#: Bytes of weights: above that a copy takes long to write, and reading text with it far longer.
_LARGEST_COPY = 4 << 30
_NEEDED = ("torch", "transformers", "safetensors", "huggingface_hub", "psutil")


def export_model(
    model: str | Path,
    out_path: Path,
    *,
    weights: WeightFormat | None = None,
    ternary_bits: int = 2,
    before: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportReport:
    """Trace a causal language model of transformers to a dense ONNX graph.

    The graph (docs/architecture.md, "The dense graph") has opset 23, its weights in `<out name>.data` and one standard
    Attention node per layer. Beside it go config.json, generation_config.json, the tokenizer and
    genai_config.json. Only safetensors are read and no code of the checkpoint is run; a local directory needs no
    network.

    Args:
        model: a model directory, or a hub id such as "owner/name".
        out_path: the ONNX file to write; its folder must exist. Existing files are replaced.
        weights: how to store the weight matrices; None is float32. The ternary matrices of BitNet models become codes
            of few bits all the same, which lose nothing; an explicit "float32" keeps them in float32 too.
        ternary_bits: 2, or 4 for runtimes without (fast) 2-bit kernels: export/ternary_codes.py says which.
        before: where to write the graph with its weights as they are before they are stored otherwise, for comparisons;
            not written where they are float32 anyway, or where it is too large for that.
        progress: receives one line per step.

    Returns:
        What was written and what it took.

    Raises:
        DeltaLLMError: for a model or an output path that cannot be used, and where memory or disk are too small; then
            nothing is written.
    """
    say = progress or (lambda _: None)
    out_path = Path(out_path)
    check_model_path(out_path)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DeltaLLMError(f"Exporting a model needs {', '.join(missing)}: install deltallm-onnx[export].")
    return _export(model, out_path, weights, ternary_bits, before=before, say=say)


def _export(
    model_name: str | Path,
    out_path: Path,
    weights: WeightFormat | None,
    ternary_bits: int,
    *,
    before: Path | None,
    say: Callable[[str], None],
) -> ExportReport:
    # torch and transformers take seconds to import: only an export pays for them.
    import onnx_ir as ir  # noqa: PLC0415

    from deltallm_onnx.export import graph_cleanup, loading, probing, sidecars, tracing  # noqa: PLC0415
    from deltallm_onnx.export.memory import peak_rss_bytes  # noqa: PLC0415
    from deltallm_onnx.export.source import find_model  # noqa: PLC0415
    from deltallm_onnx.export.ternary_codes import TernaryFormat  # noqa: PLC0415
    from deltallm_onnx.weights.store import store_weights  # noqa: PLC0415

    begin = time.perf_counter()
    source = find_model(model_name, say)
    keep_float = weights is not None and weights.name == "float32"
    weight_format = weights or WeightFormat()
    _check_room(source, out_path, weight_format, ternary_bits=0 if keep_float else ternary_bits)
    say(f"Loading {source.name} ({source.model_type})")
    model, notes = loading.load(source, None if keep_float else TernaryFormat(ternary_bits))
    parameters = loading.count_parameters(model)
    layers = probing.probe(model)
    say(f"Checking {len(layers)} attention layers against transformers")
    probing.check_against_eager(model, layers)
    say("Tracing")
    graph = tracing.trace(model, layers, source.model_type)
    graph_cleanup.clean(graph)
    weights_report = None
    if weight_format.name != "float32":
        if before is not None and _has_room_beside(before.parent, 4 * parameters):
            say("Writing it with its weights as they are, to compare with")
            ir.save(graph, before, external_data=f"{before.name}.data")
        weights_report = store_weights(graph, weight_format, source.name)
    say(f"Writing {out_path}")
    with staged(out_path) as folder:
        ir.save(graph, folder / out_path.name, external_data=f"{out_path.name}.data")
        sidecars.copy_configs(source, folder)
        sidecars.write_genai_config(model, layers, out_path.name, folder)
        no_tokenizer = sidecars.write_tokenizer(source, folder)
        names = sorted(file.name for file in folder.iterdir())
    notes += [no_tokenizer] if no_tokenizer else []
    notes += sidecars.limits(model, layers)
    report = ExportReport(
        path=out_path,
        files=tuple(out_path.parent / name for name in names),
        model_type=source.model_type,
        layers=layers,
        parameters=parameters,
        has_tokenizer="tokenizer.json" in names,
        peak_rss_bytes=peak_rss_bytes(),
        seconds=time.perf_counter() - begin,
        notes=tuple(notes),
        weights=None if weights_report is None else weights_report(),
    )
    peak = byte_text(report.peak_rss_bytes)
    say(f"Exported {parameters:,} parameters in {report.seconds:.1f} s, peak memory {peak}")
    return report


def _check_room(source: ModelSource, out_path: Path, weight_format: WeightFormat, ternary_bits: int) -> None:
    """Refuse a model that memory or disk are too small for."""
    shapes = stored_shapes(source.weights)
    if "quantization_config" in source.config:  # BitNet's: others are refused
        shapes = ternary_shapes(shapes, ternary_bits)
    check_memory(export_memory(shapes), f"Exporting {source.name}")
    check_disk(out_path.parent, export_disk(shapes, weight_format), f"Exporting {source.name}")


def _has_room_beside(folder: Path, size: int) -> bool:
    """Whether a copy of so many bytes that is only compared with is worth its room: the model itself goes first."""
    return size <= _LARGEST_COPY and free_disk(folder) > 2 * size + BESIDE_DATA
