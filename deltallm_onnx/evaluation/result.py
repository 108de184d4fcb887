"""The result of an evaluation, as one JSON-ready object."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from deltallm_onnx.counters import Counters
from deltallm_onnx.evaluation.quality import Bucket, Quality
from deltallm_onnx.evaluation.reading import Mode
from deltallm_onnx.evaluation.retrieval_score import RetrievalScore
from deltallm_onnx.evaluation.speed import Speed
from deltallm_onnx.evaluation.trial import CacheUse
from deltallm_onnx.runtime.environment import environment


@dataclasses.dataclass(frozen=True)
class CacheFigures:
    """Counters over all windows, by the names of docs/spec.md section 6; None where the model does not count.

    Attributes:
        delta_sparsity: over all coded tokens; None where none was.
        qk_mac_sparsity: over all calls.
        attn_mac_sparsity: over all calls.
        kv_bytes_per_token: bytes in use per token and layer at the end of a window, mean over windows.
        kv_bytes_allocated_per_token: the same of the buffers.
        kv_bytes_read: bytes that the decode step of a window's last token read, all layers, mean over windows.
        counted_layers: layers that count.
        raw: sums of the raw counts.
    """

    delta_sparsity: float | None
    qk_mac_sparsity: float | None
    attn_mac_sparsity: float | None
    kv_bytes_per_token: float
    kv_bytes_allocated_per_token: float
    kv_bytes_read: float | None
    counted_layers: int
    raw: Counters | None


def cache_figures(uses: Sequence[CacheUse], tokens: int, layers: int) -> CacheFigures:
    """Sum up windows of so many tokens each, of a model with so many layers."""
    total = Counters()
    for use in uses:
        total = total + (use.counters or Counters())
    counted = total if total.layers else None
    read = [use.bytes_read for use in uses if use.bytes_read is not None]
    places = tokens * layers * len(uses)
    return CacheFigures(
        delta_sparsity=None if counted is None or not counted.delta_total else counted.delta_sparsity,
        qk_mac_sparsity=None if counted is None else counted.qk_mac_sparsity,
        attn_mac_sparsity=None if counted is None else counted.attn_mac_sparsity,
        kv_bytes_per_token=sum(use.bytes_in_use for use in uses) / places,
        kv_bytes_allocated_per_token=sum(use.bytes_allocated for use in uses) / places,
        kv_bytes_read=sum(read) / len(read) if read else None,
        counted_layers=total.layers,
        raw=counted,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        model: path of the file.
        baseline: path of the baseline; None without one.
        mode: how windows were read.
        windows: N.
        window_tokens: S.
        prompt_tokens: of every window in mode "decode", else 0.
        quality: over all windows.
        positions: the same by position in the window.
        cache: counters and bytes.
        baseline_cache: of the baseline.
        retrieval: by task and depth.
        seconds: wall time of the model's calls over the windows.
        baseline_seconds: the same of the baseline.
        threads: intra-op threads; None for ONNX Runtime's choice.
        seed: of the bootstrap.
        notes: what a reader should know, one sentence each.
        speed: decode steps of the file as it is; None where not measured.
        baseline_speed: the same of the baseline.
        text: what was read, JSON-ready; None where the caller has not said.
    """

    model: str
    baseline: str | None
    mode: Mode
    windows: int
    window_tokens: int
    prompt_tokens: int
    quality: Quality
    positions: tuple[Bucket, ...]
    cache: CacheFigures
    baseline_cache: CacheFigures | None
    retrieval: tuple[RetrievalScore, ...]
    seconds: float
    baseline_seconds: float | None
    threads: int | None
    seed: int
    notes: tuple[str, ...]
    speed: Speed | None = None
    baseline_speed: Speed | None = None
    text: dict[str, Any] | None = None

    @property
    def measured(self) -> str:
        """What the predictions were made from, in words."""
        N, S, P = self.windows, self.window_tokens, self.prompt_tokens
        how = {
            "prefill+decode": "every token read as a decode step reads it, held keys outside sinks and window",
            "prefill": "each read as one prompt, with held keys outside sinks and window",
            "decode": f"the first {P} tokens read exactly as a prompt, the others as decode steps read them, with held "
            "keys outside sinks and window; predictions of the others are scored",
        }[self.mode]
        return f"{self.quality.predictions} predictions in {N} window{'s' * (N > 1)} of {S} tokens, {how}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the figures by name, None for what was not measured."""
        raw = self.cache.raw
        data = {
            "model": self.model,
            "baseline": self.baseline,
            "mode": self.mode,
            "measured": self.measured,
            "text": self.text,
            "windows": self.windows,
            "window_tokens": self.window_tokens,
            "prompt_tokens": self.prompt_tokens,
            **dataclasses.asdict(self.quality),
            "delta_sparsity": self.cache.delta_sparsity,
            "qk_mac_sparsity": self.cache.qk_mac_sparsity,
            "attn_mac_sparsity": self.cache.attn_mac_sparsity,
            "kv_bytes_per_token": self.cache.kv_bytes_per_token,
            "kv_bytes_allocated_per_token": self.cache.kv_bytes_allocated_per_token,
            "kv_bytes_read": self.cache.kv_bytes_read,
            "counted_layers": self.cache.counted_layers,
            "counts": None if raw is None else dataclasses.asdict(raw),
            "baseline_kv_bytes_per_token": _of(self.baseline_cache, "kv_bytes_per_token"),
            "baseline_kv_bytes_allocated_per_token": _of(self.baseline_cache, "kv_bytes_allocated_per_token"),
            "baseline_kv_bytes_read": _of(self.baseline_cache, "kv_bytes_read"),
            "tokens_per_second": None if self.speed is None else self.speed.tokens_per_second.median,
            "baseline_tokens_per_second": None
            if self.baseline_speed is None
            else self.baseline_speed.tokens_per_second.median,
            "speed": None if self.speed is None else self.speed.to_dict(),
            "baseline_speed": None if self.baseline_speed is None else self.baseline_speed.to_dict(),
            "threads": self.threads,
            "seconds": self.seconds,
            "baseline_seconds": self.baseline_seconds,
            "positions": [bucket.to_dict() for bucket in self.positions],
            "retrieval": [score.to_dict() for score in self.retrieval],
            "seed": self.seed,
            "notes": list(self.notes),
            "environment": environment(),
        }
        return {name: finite(value) for name, value in data.items()}


def _of(figures: CacheFigures | None, name: str) -> Any:
    return None if figures is None else getattr(figures, name)


def finite(value: Any) -> Any:
    """JSON has no infinity: None in its place, at any depth."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
