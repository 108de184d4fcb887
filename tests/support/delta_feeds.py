"""Random inputs of DeltaAttention in the form exported models give them: separate q, k, v and a 2-D mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def delta_feeds(
    rng: np.random.Generator,
    *,
    batch: int = 2,
    new_tokens: int = 3,
    past: int = 9,
    heads: int = 6,
    kv_heads: int = 2,
    head_size: int = 12,
    threshold: float = 0.8,
    cache: str = "float32",
    padding: int = 0,
) -> dict[str, Array]:
    """Feeds by input name; batch row 0 has `padding` padded columns on the left."""

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, dtype=np.float32)

    mask = np.ones((batch, past + new_tokens), np.int64)
    mask[0, :padding] = 0
    return {
        "query": normal(batch, new_tokens, heads * head_size),
        "key": normal(batch, new_tokens, kv_heads * head_size),
        "value": normal(batch, new_tokens, kv_heads * head_size),
        "past_key": normal(batch, kv_heads, past, head_size).astype(cache),
        "past_value": normal(batch, kv_heads, past, head_size).astype(cache),
        "threshold": np.full(kv_heads, threshold, np.float32),
        "attention_mask": mask,
    }


HEADS = {"num_heads": 6, "kv_num_heads": 2}
