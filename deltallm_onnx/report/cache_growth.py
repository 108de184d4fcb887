"""Bytes of the caches while a text grows: measured from the buffers, and what plain formats would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.inspect import AttentionSiteInfo
from deltallm_onnx.packed_sizes import bytes_per_token
from deltallm_onnx.runtime import DecoderModel

#: First context length that is measured; each further one is twice as long.
_SHORTEST = 16


def growth_section(
    model: DecoderModel, token_ids: npt.NDArray[np.int64], sites: Sequence[AttentionSiteInfo]
) -> dict[str, Any] | None:
    """Feed a text once and look at the caches at every power of two.

    Args:
        model: opened so that one call reads what decoding reads.
        token_ids: int64 [T], T ≥ 2.
        sites: the attention of the model's layers.

    Returns:
        JSON-ready, bytes of all layers, keys and values: `points` measured; `plain_bytes_per_token` of caches of the
        same layers without held keys, by arithmetic. None where the file does not say the sizes of its heads.
    """
    shapes = [(site.kv_num_heads, site.head_size) for site in sites]
    known = [(heads, size) for heads, size in shapes if heads is not None and size is not None]
    if not known or len(known) < len(shapes):
        return None
    plain = {
        "float32": sum(2 * heads * size * 4 for heads, size in known),
        "float16": sum(2 * heads * size * 2 for heads, size in known),
        "int8": sum(2 * heads * bytes_per_token("int8", size) for heads, size in known),
    }
    T = len(token_ids)
    lengths = [length for length in (_SHORTEST << i for i in range(32)) if length < T] + [T]
    cache = model.new_cache(limit=T)
    points = []
    for length in lengths:
        model.step(token_ids[None, cache.length : length], cache)
        in_use = cache.bytes_in_use
        points.append(
            {
                "tokens": length,
                "in_use": in_use,
                "allocated": cache.bytes_allocated,
                "kv_bytes_per_token": in_use / (length * len(sites)),
                "times_below_float32": plain["float32"] * length / in_use,
            }
        )
    return {"layers": len(sites), "points": points, "plain_bytes_per_token": plain}
