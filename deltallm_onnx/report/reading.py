"""Both models reading windows of a text: predictions by position, and the operator's counts by layer and KV head."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import COLUMNS, Counters
from deltallm_onnx.evaluation import Predictions, score
from deltallm_onnx.evaluation.vocabulary import refuse_other_vocabulary
from deltallm_onnx.runtime import DecoderModel

Progress = Callable[[str], None]


@dataclasses.dataclass
class Reading:
    """What a model did with windows of a text.

    Attributes:
        seconds: wall time of its calls.
        counters: over all windows; None for a model that does not count.
        statistics: raw counts int64 [Hkv, 8] by layer, summed over calls, bytes in use those after the last call;
            empty for a model that does not count.
        bytes_in_use: of all caches, the mean over the windows' ends.
        bytes_allocated: the same.
    """

    seconds: float = 0.0
    counters: Counters | None = None
    statistics: list[npt.NDArray[np.int64]] = dataclasses.field(default_factory=list)
    bytes_in_use: float = 0.0
    bytes_allocated: float = 0.0


def read_windows(
    model: DecoderModel, baseline: DecoderModel | None, windows: npt.NDArray[np.int64], progress: Progress
) -> tuple[Reading, Reading | None, list[Predictions]]:
    """Read every window: all tokens but the last by one call, the last one as a decode step.

    Args:
        model: opened so that one call reads what decoding reads (`delta_form`).
        baseline: the dense model, or None.
        windows: token ids [N, S], S ≥ 2.
        progress: told what is under way.

    Returns:
        Both readings, and of every window the scores of its S − 1 predictions.

    Raises:
        DeltaLLMError: where a call fails, and where the vocabularies differ.
    """
    reading, other = Reading(), None if baseline is None else Reading()
    predictions = []
    for i, window in enumerate(windows, 1):
        progress(f"Reading window {i} of {len(windows)}")
        logits = _read(model, window, reading, len(windows))
        expected = None
        if baseline is not None and other is not None:
            expected = _read(baseline, window, other, len(windows))
            refuse_other_vocabulary(model.path, logits.shape[-1], baseline.path, expected.shape[-1])
        predictions.append(score(logits, window[1:], expected))
    return reading, other, predictions


def _read(model: DecoderModel, window: npt.NDArray[np.int64], reading: Reading, windows: int) -> npt.NDArray[Any]:
    """Logits [S − 1, V]."""
    cache = model.new_cache(limit=len(window))
    began = time.perf_counter()
    logits, read = model.step(window[None, :-1], cache)
    _, decoded = model.step(window[None, -1:], cache)
    reading.seconds += time.perf_counter() - began
    reading.bytes_in_use += cache.bytes_in_use / windows
    reading.bytes_allocated += cache.bytes_allocated / windows
    if read and decoded:
        counters = Counters.from_statistics(read, cached_tokens=len(window) - 1)
        counters += Counters.from_statistics(decoded, cached_tokens=len(window), decoded_tokens=1)
        reading.counters = counters if reading.counters is None else reading.counters + counters
        both = [_joined(one, two) for one, two in zip(read, decoded, strict=True)]
        before = reading.statistics or [np.zeros_like(counts) for counts in both]
        reading.statistics = [a + b for a, b in zip(before, both, strict=True)]
    return np.asarray(logits[0])


def _joined(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts of two calls in a row: what describes the cache is the later one's."""
    total = first + second
    total[:, 6:COLUMNS] = second[:, 6:COLUMNS]
    return total


def sparsity_section(reading: Reading, layers: Sequence[int], windows: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Counters by layer and KV head, and of the whole model (docs/spec.md section 6), JSON-ready.

    Args:
        reading: of a model that counts.
        layers: number of each layer.
        windows: token ids [N, S] that were read.
    """
    if reading.counters is None:
        raise ValueError("A model without counts has no sparsity.")
    tokens = windows.size

    def ratio(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> list[float]:
        return [float(p / w) if w else 0.0 for p, w in zip(part, whole, strict=True)]

    by_head = {
        "delta_sparsity": [ratio(s[:, 1], s[:, 0]) for s in reading.statistics],
        "qk_mac_sparsity": [ratio(s[:, 3], s[:, 2]) for s in reading.statistics],
        "attn_mac_sparsity": [ratio(s[:, 3] + s[:, 5], s[:, 2] + s[:, 4]) for s in reading.statistics],
        "kv_bytes_per_token": [[float(x) / tokens for x in s[:, 6]] for s in reading.statistics],
        "kv_bytes_read": [[float(x) / len(windows) for x in s[:, 7]] for s in reading.statistics],
    }
    # Counters keep the bytes of the last window; here it is the mean over all of them, as in every other number.
    bytes_in_use = sum(int(s[:, 6].sum()) for s in reading.statistics)
    total = reading.counters.to_dict() | {"kv_bytes_per_token": bytes_in_use / (tokens * len(reading.statistics))}
    return {
        "windows": len(windows),
        "window_tokens": windows.shape[1],
        "seconds": reading.seconds,
        "tokens_per_second": tokens / reading.seconds,
        "layers": list(layers),
        "total": total,
        "by_head": by_head,
    }
