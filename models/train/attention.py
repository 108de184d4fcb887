"""Causal attention for short training windows: two matrix products and a softmax.

For windows of a few hundred tokens the whole score matrix fits the caches, and plain matrix products in bfloat16 are
faster on a CPU than the fused kernel of `scaled_dot_product_attention`. For long windows the fused kernel wins, since
it leaves out the masked half. `choose_attention` takes the faster one; both compute the same function.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "short_causal"
SHORT = 1024  # tokens; measured crossover lies between 512 and 2048


@cache
def causal_mask(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [size, size]: −∞ above the diagonal."""
    return torch.full((size, size), float("-inf")).triu(1).to(dtype)


def short_causal_attention(
    _module: torch.nn.Module,
    query_BHSD: torch.Tensor,
    key_BKSD: torch.Tensor,
    value_BKSD: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    scaling: float,
    **_unused: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [B, S, H, D]; H query heads share K key/value heads in groups of H / K."""
    batch, heads, size, width = query_BHSD.shape
    shared = batch * key_BKSD.shape[1]
    query = (query_BHSD * scaling).reshape(shared, -1, width)
    key, value = key_BKSD.reshape(shared, size, width), value_BKSD.reshape(shared, size, width)
    scores = torch.bmm(query, key.transpose(1, 2)).view(shared, -1, size, size)
    weights = (scores + causal_mask(size, scores.dtype)).softmax(-1)
    output = torch.bmm(weights.view(shared, -1, size), value).view(batch, heads, size, width)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, short_causal_attention)


def choose_attention(model: LlamaForCausalLM, context: int) -> None:
    """Set the attention of `model` for training windows of `context` tokens."""
    wanted = NAME if context < SHORT else "sdpa"
    if model.config._attn_implementation != wanted:  # noqa: SLF001  # the library offers a setter but no getter
        model.set_attn_implementation(wanted)
