"""Everything a report shows, as one JSON object: measured first, drawn and laid out elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltallm_onnx
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import delta_form
from deltallm_onnx.inspect import AttentionSiteInfo
from deltallm_onnx.report.attention import attention_section
from deltallm_onnx.report.cache_growth import growth_section
from deltallm_onnx.report.calibration_file import calibration_section, find_calibration
from deltallm_onnx.report.held_keys import held_keys
from deltallm_onnx.report.layer_inputs import layer_inputs
from deltallm_onnx.report.model_facts import inspect_rewritten, model_section
from deltallm_onnx.report.quality import quality_section
from deltallm_onnx.report.reading import read_windows, sparsity_section
from deltallm_onnx.report.request import ReportRequest
from deltallm_onnx.report.run_lengths import run_section
from deltallm_onnx.report.sample_text import SampleText, read_sample
from deltallm_onnx.report.speeds import read_record
from deltallm_onnx.report.trade_off import trade_off_section
from deltallm_onnx.runtime import DecoderModel
from deltallm_onnx.runtime.environment import environment

Progress = Callable[[str], None]

FORMAT, VERSION = "deltallm-report", 1

#: Parts of a report that may be absent, in the order they are shown.
PARTS = ("quality", "sparsity", "attention", "runs", "cache", "trade_off", "speeds", "calibration")

_NO_TEXT = "It needs a text: give --text FILE."
_UNFUSED = "It needs the fused operator: this model was written with --unfused."


def _silent(_text: str) -> None:
    """Tell nobody."""


def gather(request: ReportRequest, *, progress: Progress = _silent) -> dict[str, Any]:
    """Measure what the request has the inputs for.

    Args:
        request: what to report on.
        progress: told what is under way.

    Returns:
        JSON-ready: `model`, `environment`, `text`, the PARTS (None where an input is missing), and `left_out`: of each
        part that is None, a sentence that says what would add it.

    Raises:
        DeltaLLMError: for a missing or broken input, a dense model, and a text that is too short.
    """
    inspection, sites = inspect_rewritten(request.model)
    # Files that are read come before minutes of measuring.
    calibration = find_calibration(request, inspection.metadata)
    files = [("study", path) for path in request.studies]
    if calibration.path is not None and calibration.points:
        files.insert(0, ("calibration", calibration.path))
    parts: dict[str, Any] = dict.fromkeys(PARTS)
    left_out = {
        "trade_off": "It needs measurements of several settings: give --study FILE, or --calibration deltallm.json.",
        "speeds": "It needs timings: give --record FILE, as 'deltallm-onnx bench --json FILE' writes it.",
        "calibration": calibration.left_out,
    }
    parts["calibration"] = calibration_section(calibration)
    parts["trade_off"] = trade_off_section(files) if files else None
    parts["speeds"] = [read_record(path) for path in request.records] or None
    text = read_sample(request, exact_tokens(sites)) if request.text is not None else None
    if text is None:
        left_out |= dict.fromkeys(("quality", "sparsity", "attention", "runs", "cache"), _NO_TEXT)
    else:
        read, unread = _read(request, sites, text, progress)
        parts |= read
        left_out |= unread
    return {
        "format": FORMAT,
        "version": VERSION,
        "deltallm_onnx": deltallm_onnx.__version__,
        "environment": environment(),
        "model": model_section(request.model, inspection, sites),
        "baseline": None if request.baseline is None else {"file": request.baseline_name or request.baseline.name},
        "text": None if text is None else text.facts,
        **parts,
        "left_out": {name: left_out[name] for name in PARTS if parts[name] is None},
    }


def exact_tokens(sites: tuple[AttentionSiteInfo, ...]) -> int:
    """The largest number of sinks and window together of any layer."""
    return max(int(site.settings.get("sinks", 0)) + int(site.settings.get("delta_window", 0)) for site in sites)


def _read(
    request: ReportRequest, sites: tuple[AttentionSiteInfo, ...], text: SampleText, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """The parts for which models are run, and why others are absent."""
    progress(f"Opening {request.model}")
    model = delta_form(request.model, threads=request.threads)
    baseline = None
    if request.baseline is not None:
        progress(f"Opening {request.baseline}")
        baseline = _open_baseline(request.baseline, request.threads)
    reading, other, predictions = read_windows(model, baseline, text.windows, progress)
    progress("Filling the caches")
    parts: dict[str, Any] = {
        "quality": quality_section(predictions, reading, other, text.windows.shape[1]),
        "cache": growth_section(model, text.windows[0], sites),
    }
    left_out = {"cache": "The file does not say how large its heads are."}
    del model, baseline
    left_out["sparsity"] = "The model has no counts: it was written with --unfused --no-statistics."
    if reading.counters is not None:
        parts["sparsity"] = sparsity_section(reading, [site.layer for site in sites], text.windows)
    if not all(site.op.endswith("::DeltaAttention") for site in sites):
        return parts, left_out | dict.fromkeys(("attention", "runs"), _UNFUSED)
    progress("Reading the sample")
    layers = layer_inputs(request.model, text.sample, threads=request.threads)
    progress("Coding the sample's keys")
    keys = [held_keys(layer) for layer in layers]
    parts["runs"] = run_section(layers, keys)
    left_out["attention"] = "It was not asked for: --maps is 0."
    if request.maps:
        progress("Comparing attention")
        parts["attention"] = attention_section(layers, keys, text.sample_tokens, maps=request.maps)
    return parts, left_out


def _open_baseline(path: Path, threads: int | None) -> DecoderModel:
    """The dense model.

    Raises:
        DeltaLLMError: where it is none, or a rewritten one.
    """
    baseline = DecoderModel(path, threads=threads)
    if baseline.signature.delta_nodes:
        raise DeltaLLMError(f"{path} is a rewritten model: give the dense one that it was made from as --baseline.")
    return baseline
