"""What an export did."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltallm_onnx.weights.report import WeightsReport


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One attention layer of the exported model.

    Attributes:
        num_heads: query heads Hq.
        kv_num_heads: key/value heads Hkv.
        head_size: D.
        scale: factor of q·k.
        softcap: 0 for none.
        window: keys a query sees, itself included; 0 for the whole past.
    """

    num_heads: int
    kv_num_heads: int
    head_size: int
    scale: float
    softcap: float
    window: int


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export wrote and what it took.

    Attributes:
        path: the ONNX file; its weights are in `<name>.data` beside it.
        files: every file written, `path` included.
        model_type: transformers' name of the architecture.
        layers: one entry per attention layer.
        parameters: number of float32 parameters, tied ones counted once.
        has_tokenizer: a tokenizer.json was written.
        peak_rss_bytes: highest resident memory of this process so far.
        seconds: wall time.
        notes: what a user should know, one sentence each.
        weights: what became of the weights; None where they are float32.
    """

    path: Path
    files: tuple[Path, ...]
    model_type: str
    layers: tuple[LayerReport, ...]
    parameters: int
    has_tokenizer: bool
    peak_rss_bytes: int
    seconds: float
    notes: tuple[str, ...]
    weights: WeightsReport | None = None
