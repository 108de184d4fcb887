"""Tiny random models of many architectures, in Hugging Face form and exported.

Every dimension of a configuration differs from every other, so that none can stand in for another unseen: vocabulary,
hidden, intermediate and head sizes, layers, heads, key/value heads, windows, positions. Weights are scaled so that
logits have a standard deviation near 1 and attention is far from uniform.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from deltallm_onnx.export import export_model
from deltallm_onnx.export.quiet import quiet

#: Sizes most architectures share; head_dim 10 is not hidden_size / heads (8). One group has three query heads.
_SIZES: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 97,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 10}
_THREE_LAYERS = {"num_hidden_layers": 3}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], **_THREE_LAYERS}


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in _SIZES.items() if name not in names}


def _config(name: str, **sizes: Any) -> Callable[[], Any]:
    def make() -> Any:
        return transformers.CONFIG_MAPPING[name](**sizes)

    return make


#: Architecture → maker of its tiny transformers configuration.
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": _config("llama", **_SIZES, **_HEAD),
    "qwen2": _config("qwen2", **_SIZES),
    "qwen3": _config("qwen3", **_SIZES, **_HEAD),
    "phi3": _config("phi3", **_SIZES, sliding_window=9),
    "gemma": _config("gemma", **_SIZES, **_HEAD),
    "gemma2": _config("gemma2", **{**_SIZES, **_MIXED}, **_HEAD, sliding_window=7, query_pre_attn_scalar=12,
                      attn_logit_softcapping=2.0, final_logit_softcapping=5.0),
    "gemma3_text": _config("gemma3_text", **{**_SIZES, **_MIXED}, **_HEAD, sliding_window=7, query_pre_attn_scalar=12),
    "mistral": _config("mistral", **_SIZES, **_HEAD, sliding_window=9),
    "gpt2": _config("gpt2", vocab_size=83, n_embd=48, n_layer=2, n_head=6, n_inner=97, n_positions=130,
                    pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "bitnet": _config("bitnet", **_SIZES),
    "smollm3": _config("smollm3", **{**_SIZES, **_THREE_LAYERS}, no_rope_layers=[1, 0, 1]),
    "olmo2": _config("olmo2", **_SIZES),
    "cohere2": _config("cohere2", **{**_SIZES, **_MIXED}, **_HEAD, sliding_window=7, logit_scale=0.7),
    "gpt_bigcode": _config("gpt_bigcode", vocab_size=83, n_embd=48, n_layer=2, n_head=6, n_inner=97, n_positions=130,
                           pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "gpt_neox": _config("gpt_neox", **_without("num_key_value_heads"), rotary_pct=0.5),
    "granite": _config("granite", **_SIZES, **_HEAD, attention_multiplier=0.2, residual_multiplier=0.6),
    "mixtral": _config("mixtral", **_SIZES, **_HEAD, num_local_experts=4, num_experts_per_tok=3),
    "opt": _config("opt", vocab_size=83, hidden_size=48, word_embed_proj_dim=48, ffn_dim=97, num_hidden_layers=2,
                   num_attention_heads=6, max_position_embeddings=130, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    "stablelm": _config("stablelm", **_SIZES, partial_rotary_factor=0.5),
    "starcoder2": _config("starcoder2", **_SIZES, sliding_window=9),
    "phi": _config("phi", **{**_SIZES, "num_key_value_heads": 3}, partial_rotary_factor=0.5),
    "olmo": _config("olmo", **_SIZES, clip_qkv=2.0),
    "nemotron": _config("nemotron", **_SIZES, **_HEAD, partial_rotary_factor=0.5),
    "qwen3_moe": _config("qwen3_moe", **_SIZES, **_HEAD, moe_intermediate_size=29, num_local_experts=4,
                         num_experts_per_tok=3, decoder_sparse_step=1, mlp_only_layers=[]),
    "ernie4_5": _config("ernie4_5", **_SIZES, **_HEAD),
    "hunyuan_v1_dense": _config("hunyuan_v1_dense", **_SIZES, **_HEAD),
    "arcee": _config("arcee", **_SIZES, **_HEAD),
    "cohere": _config("cohere", **_SIZES, logit_scale=0.7),
    "helium": _config("helium", **_SIZES, head_dim=8),
    "granitemoehybrid": _config("granitemoehybrid", **_SIZES, layer_types=["attention", "attention"],
                                num_local_experts=4, num_experts_per_tok=3, shared_intermediate_size=29,
                                mamba_n_heads=6, position_embedding_type="rope", attention_multiplier=0.2),
    # heads of two sizes, embeddings for every layer
    "gemma4_text": _config("gemma4_text", **{**_SIZES, **_THREE_LAYERS}, **_HEAD, sliding_window=7, global_head_dim=14,
                           layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                           hidden_size_per_layer_input=11, vocab_size_per_layer_input=83),
    # short and long factors change places at 16 tokens, inside the scenarios of support.hf_reference
    "phi3_longrope": _config("phi3", **_SIZES, original_max_position_embeddings=16,
                             rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0,
                                              "short_factor": [1.1] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}),
}  # fmt: skip


#: What models/README.md calls them.
TITLES: dict[str, str] = {
    "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "gemma": "Gemma", "gemma2": "Gemma2",
    "gemma3_text": "Gemma3", "mistral": "Mistral", "gpt2": "GPT-2", "bitnet": "BitNet", "smollm3": "SmolLM3",
    "olmo2": "OLMo2", "cohere2": "Cohere2", "gpt_bigcode": "GPT-BigCode", "gpt_neox": "GPT-NeoX", "granite": "Granite",
    "mixtral": "Mixtral", "opt": "OPT", "stablelm": "StableLM", "starcoder2": "Starcoder2", "phi": "Phi",
    "olmo": "OLMo", "nemotron": "Nemotron", "qwen3_moe": "Qwen3-MoE", "ernie4_5": "Ernie4.5",
    "hunyuan_v1_dense": "HunYuan-Dense", "phi3_longrope": "Phi3 LongRoPE",
    "arcee": "Arcee", "cohere": "Cohere", "helium": "Helium", "granitemoehybrid": "Granite-MoE-Hybrid",
    "gemma4_text": "Gemma4", "gptj": "GPT-J", "codegen": "CodeGen", "gpt_neo": "GPT-Neo", "mpt": "MPT", "lfm2": "LFM2",
    "lfm2_moe": "LFM2-MoE", "bloom": "BLOOM", "falcon": "Falcon", "gpt_oss": "GPT-OSS", "gemma3n_text": "Gemma3n",
}  # fmt: skip


def save_tiny(name: str, directory: Path, seed: int = 0) -> None:
    """Write config.json and model.safetensors of a tiny random model.

    Args:
        name: a key of `ARCHITECTURES`.
        directory: where to; made if missing.
        seed: of the weights.
    """
    save_config(ARCHITECTURES[name](), directory, seed)


def save_config(config: Any, directory: Path, seed: int = 0) -> None:
    """The same for any transformers configuration."""
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if hasattr(model, "set_experts_implementation"):  # transformers 5, whose default kernel wants multiples of 4
            model.set_experts_implementation("eager")
        _scale_weights(model)
        model.save_pretrained(directory)


def _scale_weights(model: Any) -> None:
    """Weights that make every part matter; the embedding sets the size of the logits where it is tied."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            # norms near 1 (or near 0 where the model adds 1), biases near 0: spread either
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.3)
        elif "embed" in name or "wte" in name:
            torch.nn.init.normal_(parameter, std=1.0)
        else:
            # twice the variance-keeping scale makes attention far from uniform
            torch.nn.init.normal_(parameter, std=2.0 * parameter.shape[-1] ** -0.5)
    with torch.no_grad():
        ids = torch.arange(24).reshape(2, 12) * 7 % model.get_input_embeddings().num_embeddings
        for _ in range(2):  # final softcaps make the first step fall short
            head = model.get_output_embeddings()
            size = float(model(ids).logits.std())
            head.weight.mul_(min(max(1.0 / size, 0.02), 50.0))


def exported(name: str, cache_directory: Path, seed: int = 0) -> Path:
    """The dense ONNX of a tiny model, exported at most once per cache directory; its model lies in `model` beside it.

    Args:
        name: a key of `ARCHITECTURES`.
        cache_directory: shared by whoever may share exports, see `shared_directory`.
        seed: of the weights.

    Returns:
        `<cache_directory>/<name>-<seed>/dense.onnx`.
    """
    folder = cache_directory / f"{name}-{seed}"
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(dir=cache_directory))
        save_tiny(name, scratch / "model", seed)
        export_model(scratch / "model", scratch / "dense.onnx")
        try:
            scratch.rename(folder)
        except OSError:  # another worker was faster
            shutil.rmtree(scratch)
    return folder / "dense.onnx"


def shared_directory(tmp_path_factory: Any) -> Path:
    """One directory for all pytest-xdist workers of a test session."""
    base: Path = tmp_path_factory.getbasetemp()
    shared = (base.parent if "popen-gw" in base.name else base) / "tiny-exports"
    shared.mkdir(exist_ok=True)
    return shared
