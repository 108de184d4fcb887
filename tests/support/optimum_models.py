"""The tiny models that optimum-onnx exports for tests/optimum, as configurations in plain data.

`ORTModelForCausalLM` works the size of its empty caches out of config.json: for most architectures it takes the head
size to be hidden size / heads, and for some the key/value heads to be the heads. The sizes follow that, and are else as
different from each other as they can be. Nothing here imports transformers, whose version differs between environments.
"""

from __future__ import annotations

import dataclasses
from typing import Any

#: Where embeddings are tied by default, random models repeat their input for ever.
_UNTIED = {"tie_word_embeddings": False}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 97,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 130,
    **_TOKENS,
}
_UNGROUPED = {**_SIZES, "num_key_value_heads": 6}
_HEAD = {"head_dim": 8}  # where the class default is not hidden_size / heads
_GPT2 = {
    "vocab_size": 83,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_inner": 97,
    "n_positions": 130,
    **_TOKENS,
    **_UNTIED,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 7}
_GEMMA2 = {
    **_UNGROUPED,
    **_HEAD,
    **_MIXED,
    "query_pre_attn_scalar": 12,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
    **_UNTIED,
}
_FALCON = {
    "vocab_size": 83,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "ffn_hidden_size": 97,
    "max_position_embeddings": 130,
    **_TOKENS,
}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """One architecture.

    Attributes:
        name: of the architecture in models/README.md; None for one more export of an architecture that is there.
        model_type: in transformers.
        sizes: arguments of its configuration.
        seed: of the weights, where 0 makes a model that says the same for ever.
        attention: transformers' implementation that is traced; None is what optimum-cli takes: SDPA where there is one.
    """

    name: str | None
    model_type: str
    sizes: dict[str, Any]
    seed: int = 0
    attention: str | None = None


def _without(sizes: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in sizes.items() if name not in names}


#: Folder name → model.
MODELS: dict[str, TinyModel] = {
    "llama": TinyModel("Llama", "llama", _SIZES),
    "llama_eager": TinyModel(None, "llama", _SIZES, attention="eager"),
    "mistral": TinyModel("Mistral", "mistral", {**_SIZES, "sliding_window": 9}),
    "qwen2": TinyModel("Qwen2", "qwen2", _SIZES),
    "qwen3": TinyModel("Qwen3", "qwen3", {**_SIZES, **_HEAD}),
    "qwen3_moe": TinyModel(
        "Qwen3-MoE",
        "qwen3_moe",
        {**_SIZES, **_HEAD, "num_experts": 5, "num_experts_per_tok": 4, "moe_intermediate_size": 37},
    ),
    "phi": TinyModel("Phi", "phi", {**_UNGROUPED, "partial_rotary_factor": 0.5}),
    "phi3": TinyModel("Phi3", "phi3", {**_UNGROUPED, "sliding_window": 9}),
    "gemma": TinyModel("Gemma", "gemma", {**_SIZES, "head_dim": 10}),
    # transformers' SDPA has no softcap: what optimum exports by default is another model
    "gemma2": TinyModel("Gemma2", "gemma2", _GEMMA2, attention="eager"),
    "gemma2_sdpa": TinyModel(None, "gemma2", _GEMMA2),
    "gemma3": TinyModel(
        "Gemma3",
        "gemma3_text",
        {**_SIZES, **_MIXED, **_UNTIED, "head_dim": 10, "query_pre_attn_scalar": 12},
    ),
    "granite": TinyModel("Granite", "granite", {**_SIZES, "attention_multiplier": 0.2, "residual_multiplier": 0.6}),
    "stablelm": TinyModel("StableLM", "stablelm", {**_SIZES, "partial_rotary_factor": 0.5}),
    "smollm3": TinyModel("SmolLM3", "smollm3", {**_SIZES, "no_rope_layers": [1, 0, 1]}),
    "olmo": TinyModel("OLMo", "olmo", _UNGROUPED),
    "olmo2": TinyModel("OLMo2", "olmo2", _UNGROUPED),
    "cohere": TinyModel("Cohere", "cohere", {**_SIZES, "logit_scale": 0.7}),
    "nemotron": TinyModel("Nemotron", "nemotron", {**_SIZES, **_HEAD}),
    "helium": TinyModel("Helium", "helium", {**_SIZES, **_HEAD}),
    "arcee": TinyModel("Arcee", "arcee", {**_SIZES, **_HEAD}),
    "gpt2": TinyModel("GPT-2", "gpt2", _GPT2, seed=1),
    "gpt_bigcode": TinyModel("GPT-BigCode", "gpt_bigcode", _GPT2),
    "gptj": TinyModel("GPT-J", "gptj", {**_GPT2, "rotary_dim": 4}),
    "codegen": TinyModel("CodeGen", "codegen", {**_GPT2, "n_embd": 64, "n_head": 8, "rotary_dim": 6}),
    "gpt_neo": TinyModel(
        "GPT-Neo",
        "gpt_neo",
        {
            "vocab_size": 83,
            "hidden_size": 48,
            "num_layers": 4,
            "num_heads": 6,
            "intermediate_size": 97,
            "max_position_embeddings": 130,
            "window_size": 9,
            "attention_types": [[["global", "local"], 2]],
            **_TOKENS,
        },
    ),
    "gpt_neox": TinyModel("GPT-NeoX", "gpt_neox", {**_without(_SIZES, "num_key_value_heads"), "rotary_pct": 0.5}),
    "opt": TinyModel(
        "OPT",
        "opt",
        {
            "vocab_size": 83,
            "hidden_size": 48,
            "word_embed_proj_dim": 48,
            "ffn_dim": 97,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "max_position_embeddings": 130,
            **_TOKENS,
        },
    ),
    "falcon": TinyModel(
        "Falcon", "falcon", {**_FALCON, "multi_query": True, "parallel_attn": True, "bias": False, "alibi": False}
    ),
    "falcon_grouped": TinyModel(None, "falcon", {**_FALCON, "num_kv_heads": 6, "new_decoder_architecture": True}),
    "bloom": TinyModel(
        "BLOOM", "bloom", {"vocab_size": 83, "hidden_size": 48, "n_layer": 3, "n_head": 6, **_TOKENS, **_UNTIED}, seed=4
    ),
    "mpt": TinyModel(
        "MPT",
        "mpt",
        {"vocab_size": 83, "d_model": 48, "n_layers": 3, "n_heads": 6, "expansion_ratio": 2, "max_seq_len": 130}
        | _TOKENS,
    ),
    "gpt_oss": TinyModel(
        "GPT-OSS", "gpt_oss", {**_SIZES, **_HEAD, **_MIXED, "num_local_experts": 5, "num_experts_per_tok": 3}
    ),
}  # fmt: skip
