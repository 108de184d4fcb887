"""Measurements made by hand, and a model whose measurements are a formula."""

from __future__ import annotations

import numpy as np

from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.counters import COLUMNS

LAYERS, KV_HEADS, TOKENS = 2, 3, 50


def measurement(
    *,
    kl: tuple[float, ...] = (0.0, 0.0),
    loss: tuple[float, ...] = (3.0, 3.0),
    zeros: int = 0,
    total: int = 1,
    kv_bytes: int = 0,
) -> Measurement:
    """Counts are per KV head, bytes per KV head and token."""
    counts = np.zeros((KV_HEADS, COLUMNS), np.int64)
    counts[:, 0], counts[:, 1], counts[:, 6] = total, zeros, kv_bytes * TOKENS * len(loss)
    return Measurement(np.array(kl, float), np.array(loss, float), (counts,) * LAYERS, TOKENS, 0.25)
