"""Tiny random models in Hugging Face form and as the folders onnxruntime-genai's own model builder makes of them.

Every dimension of a configuration differs from every other, as in support.tiny_models; head sizes are multiples of 16,
because ONNX Runtime's GroupQueryAttention takes no others.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from support.tiny_models import save_config

from deltallm_onnx.export.quiet import quiet

VOCABULARY = 83
CONTEXT = 331
#: Of the weights; with others some models repeat one token for ever.
SEED = 6

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 97,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 16}
_WIDE = {**_SIZES, "hidden_size": 96}  # the same head size where it is hidden_size / num_attention_heads
# the builder rounds Gemma's factor of the embeddings, √hidden_size, to two decimals
_SQUARE = {**_SIZES, "hidden_size": 144}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _config(name: str, **sizes: Any) -> Callable[[], Any]:
    def make() -> Any:
        return transformers.CONFIG_MAPPING[name](**sizes)

    return make


#: Architecture, as Hugging Face's classes begin, → maker of its tiny configuration.
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "Llama": _config("llama", **_SIZES, **_HEAD),
    "Mistral": _config("mistral", **_SIZES, **_HEAD, sliding_window=None),
    "Mistral with a window": _config("mistral", **_SIZES, **_HEAD, sliding_window=9),
    "Qwen2": _config("qwen2", **_WIDE),
    "Qwen3": _config("qwen3", **_SIZES, **_HEAD),
    "Phi": _config("phi", **_WIDE, partial_rotary_factor=1.0),
    # ONNX Runtime rotates multiples of 16 channels
    "Phi with partial rotary": _config("phi", **{**_SIZES, "hidden_size": 192}, partial_rotary_factor=0.5),
    "Phi3": _config("phi3", **_WIDE, original_max_position_embeddings=CONTEXT),
    "Phi3 with a window": _config("phi3", **_WIDE, original_max_position_embeddings=CONTEXT, sliding_window=9),
    # short and long factors change places at 16 tokens, inside the scenarios of support.hf_reference
    "Phi3 LongRoPE": _config("phi3", **_WIDE, original_max_position_embeddings=16,
                                  rope_parameters={"type": "longrope", "rope_type": "longrope", "rope_theta": 1e4,
                                                   "short_factor": [1.1] * 8,
                                                   "long_factor": [*range(2, 10)]}),
    "Phi3 of 4200 tokens": _config("phi3", **{**_WIDE, "max_position_embeddings": 4200},
                                   original_max_position_embeddings=4200),
    "Gemma": _config("gemma", **_SQUARE, **_HEAD),
    # tied embeddings would make it repeat one token: they outweigh its normalised layers
    "Gemma2": _config("gemma2", **_SQUARE, **_MIXED, **_HEAD, sliding_window=7, query_pre_attn_scalar=12,
                      attn_logit_softcapping=2.0, final_logit_softcapping=5.0, tie_word_embeddings=False),
    "Gemma3": _config("gemma3_text", **_SQUARE, **_MIXED, **_HEAD, sliding_window=7, query_pre_attn_scalar=12),
    "Granite": _config("granite", **_SIZES, **_HEAD, attention_multiplier=0.2, residual_multiplier=0.6),
    "Granite-MoE-Hybrid": _config("granitemoehybrid", **_WIDE, layer_types=["attention"] * 3, num_local_experts=0,
                                  shared_intermediate_size=101, attention_multiplier=0.2, residual_multiplier=0.6,
                                  mamba_n_heads=12, mamba_d_head=16, position_embedding_type="rope"),
    "Granite-MoE-Hybrid without positions": _config("granitemoehybrid", **_WIDE, layer_types=["attention"] * 3,
                                                    num_local_experts=0, shared_intermediate_size=101,
                                                    mamba_n_heads=12, mamba_d_head=16),
    "Granite-MoE-Hybrid with experts": _config("granitemoehybrid", **_WIDE, layer_types=["attention"] * 3,
                                               num_local_experts=5, num_experts_per_tok=4,
                                               shared_intermediate_size=101, mamba_n_heads=12, mamba_d_head=16,
                                               position_embedding_type="rope"),
    "OLMo": _config("olmo", **_WIDE),
    "Nemotron": _config("nemotron", **_WIDE, partial_rotary_factor=1.0),
    "SmolLM3": _config("smollm3", **_SIZES, no_rope_layers=[1, 0, 1]),
    "Ernie4.5": _config("ernie4_5", **_SIZES, **_HEAD),
    "GPT-OSS": _config("gpt_oss", **_SIZES, **_MIXED, **_HEAD, sliding_window=7, num_local_experts=5,
                       num_experts_per_tok=4, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4,
                       "factor": 8.0, "beta_fast": 2.0, "beta_slow": 0.5, "truncate": False,
                       "original_max_position_embeddings": 41}),
    "HunYuan-Dense": _config("hunyuan_v1_dense", **_SIZES, **_HEAD),
    "LFM2": _config("lfm2", **_WIDE, layer_types=["conv", "full_attention", "conv"],
                    tie_word_embeddings=False),
    "LFM2-MoE": _config("lfm2_moe", **_WIDE, layer_types=["conv", "full_attention", "conv"],
                        moe_intermediate_size=101, num_dense_layers=1, num_experts=5, num_experts_per_tok=4),
}  # fmt: skip

#: Those that the builder of onnxruntime-genai 0.18 gets right with transformers 5.23 (tests/genai/test_builder.py).
BUILT_RIGHT = (
    "Llama",
    "Mistral",
    "Qwen2",
    "Qwen3",
    "Phi",
    "Phi with partial rotary",
    "Phi3",
    "Phi3 LongRoPE",
    "Gemma",
    "Gemma2",
    "Granite",
    "Granite-MoE-Hybrid",
    "Nemotron",
    "Ernie4.5",
    "GPT-OSS",
    "HunYuan-Dense",
    "LFM2",
    "LFM2-MoE",
)

#: What is to be said of some of them in models/README.md.
REMARKS = {
    "Mistral": "without a sliding window: its builder drops it",
    "Phi3": "without a sliding window: its builder drops it",
    "Granite-MoE-Hybrid": "dense, with RoPE: its builder drops the experts and always writes RoPE",
}


def save_model(configuration: Any, directory: Path, seed: int) -> None:
    """Write a random model with a tokenizer, as the builder wants them.

    Args:
        configuration: of transformers, with VOCABULARY tokens.
        directory: where to; made if missing.
        seed: of the weights.
    """
    save_config(configuration, directory, seed)
    save_tokenizer(directory)


def save_tokenizer(directory: Path) -> None:
    """One word per token id."""
    words = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(VOCABULARY - 3))]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<pad>"))  # noqa: S106  # no secret
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def build(source: Path, target: Path, *, precision: str = "fp32", provider: str = "cpu", **options: str) -> None:
    """Run onnxruntime-genai's model builder, in this process: its imports take longer than a tiny model.

    Args:
        source: a Hugging Face folder with a tokenizer.
        target: where the genai folder is written.
        precision: its -p.
        provider: its -e.
        options: its --extra_options.
    """
    with tempfile.TemporaryDirectory() as scratch:
        import onnxruntime_genai.models  # noqa: F401, PLC0415  # puts the builder's folder on sys.path
        from builder import create_model, parse_extra_options  # noqa: PLC0415

        given = [f"{key}={value}" for key, value in {"hf_token": "false", **options}.items()]
        where = ("", str(source), str(target), precision, provider, scratch)
        with quiet():
            create_model(*where, **parse_extra_options(*where, given))


def built(name: str, cache_directory: Path, *, precision: str = "fp32", provider: str = "cpu", **options: str) -> Path:
    """The genai folder of a tiny model, built at most once per cache directory; `model` beside it is its source.

    Args:
        name: a key of `ARCHITECTURES`.
        cache_directory: shared by whoever may share builds, see `shared_directory`.
        precision: the builder's -p.
        provider: the builder's -e; the folder is for a CPU all the same.
        options: the builder's --extra_options.

    Returns:
        `<cache_directory>/<name and settings>/genai`.
    """
    settings = [name, precision, provider, *(f"{key}={value}" for key, value in sorted(options.items()))]
    folder = cache_directory / "-".join(settings).replace(" ", "-")
    if not folder.exists():
        scratch = Path(tempfile.mkdtemp(dir=cache_directory))
        try:
            save_model(ARCHITECTURES[name](), scratch / "model", SEED)
            build(scratch / "model", scratch / "genai", precision=precision, provider=provider, **options)
            _without_providers(scratch / "genai")
            scratch.rename(folder)
        except OSError:  # another worker was faster
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder / "genai"


def _without_providers(folder: Path) -> None:
    """Models built for other devices have operators that a CPU may know too."""
    data = configuration(folder)
    data["model"]["decoder"]["session_options"]["provider_options"] = []
    (folder / "genai_config.json").write_text(json.dumps(data, indent=4), encoding="utf-8")


def shared_directory(tmp_path_factory: Any) -> Path:
    """One directory for all pytest-xdist workers of a test session."""
    base: Path = tmp_path_factory.getbasetemp()
    shared = (base.parent if "popen-gw" in base.name else base) / "genai-models"
    shared.mkdir(exist_ok=True)
    return shared


def configuration(folder: Path) -> dict[str, Any]:
    """A folder's genai_config.json."""
    data: dict[str, Any] = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    return data
