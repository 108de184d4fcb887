"""The demo architecture: a Llama whose dimensions all differ, so that a mixed-up axis cannot go unnoticed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# hidden 256 = 4 query heads × head size 64; every other size is unique.
DEMO: dict[str, Any] = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
}
TINY: dict[str, Any] = DEMO | {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
}
SIZES = {"demo": DEMO, "tiny": TINY}


def build_model(size: str, seed: int) -> LlamaForCausalLM:
    """A freshly initialised model; the projections that write to the residual stream start at zero."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SIZES[size],
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        use_cache=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    return model
