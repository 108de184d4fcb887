"""The same readings from a rewritten .onnx model and the compiled operator, one decode step per token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.baselines.model import Reading
from deltallm_onnx.runtime import DecoderModel

#: Columns of the statistics output (docs/spec.md section 6).
_KV_BYTES, _KV_BYTES_READ = 6, 7


def decode(model: DecoderModel, windows: npt.NDArray[Any]) -> Iterator[Reading]:
    """Decode windows from empty caches.

    Args:
        model: with statistics outputs.
        windows: token ids, int64 [N, S].
    """
    for window in windows:
        cache = model.new_cache(limit=len(window))
        logits, counts = [], []
        for token in window:
            found, statistics = model.step(token[None, None], cache)
            logits.append(found[0, 0])
            counts.append(np.sum(statistics, axis=(0, 1)))
        columns = np.array(counts)
        yield Reading(np.stack(logits)[None], columns[None, :, _KV_BYTES], columns[None, :, _KV_BYTES_READ])
