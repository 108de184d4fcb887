"""Architectures whose attention the dense graph cannot say are refused with one sentence that names type and reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from support import tiny_models

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import attention_tap, export_model, probing
from deltallm_onnx.export.report import LayerReport

SIZES = {
    "vocab_size": 83,
    "hidden_size": 48,
    "intermediate_size": 97,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}


#: Why the column "transformers" of models/README.md has no number, for the architectures that have a row there.
CELLS = {
    "gpt_oss": "has attention sinks, which the dense graph cannot say: refused",
    "bloom": "computes its own attention (ALiBi) outside transformers' attention interface: refused",
    "falcon": "computes its own attention outside transformers' attention interface: refused",
    "gptj": "computes its own attention outside transformers' attention interface: refused",
    "codegen": "computes its own attention outside transformers' attention interface: refused",
    "gpt_neo": "computes its own attention outside transformers' attention interface: refused",
    "mpt": "computes its own attention (ALiBi) outside transformers' attention interface: refused",
    "lfm2": "has layers of convolutions: refused",
    "lfm2_moe": "has layers of convolutions: refused",
    "gemma3n_text": "has layers that use the keys and values of others: refused",
}


def refusal(directory: Path, out: Path) -> str:
    with pytest.raises(DeltaLLMError) as caught:
        export_model(directory, out / "dense.onnx")
    assert not list(out.iterdir()), "something was left behind"
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("model_type", "sizes", "reason"),
    [
        ("gpt_oss", {**SIZES, "head_dim": 10, "num_local_experts": 4, "num_experts_per_tok": 2}, "attention sinks"),
        ("bert", SIZES, "sees later tokens"),
        (
            "bloom",
            {"vocab_size": 83, "hidden_size": 48, "n_layer": 2, "n_head": 6},
            "attention interface once per layer",
        ),
        ("mamba", {"vocab_size": 83, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 5}, "once per layer"),
        (
            "falcon",
            {"vocab_size": 83, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6},
            "interface",
        ),
        (
            "gptj",
            {"vocab_size": 83, "n_embd": 48, "n_layer": 2, "n_head": 6, "n_positions": 130, "rotary_dim": 4},
            "interface",
        ),
        (
            "codegen",
            {"vocab_size": 83, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 130, "rotary_dim": 4},
            "interface once per layer",
        ),
        (
            "gpt_neo",
            {
                "vocab_size": 83,
                "hidden_size": 48,
                "num_layers": 2,
                "num_heads": 6,
                "max_position_embeddings": 130,
                "attention_types": [[["global", "local"], 1]],
            },
            "interface",
        ),
        ("mpt", {"vocab_size": 83, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 130}, "once per layer"),
        ("diffllama", {**SIZES, "num_key_value_heads": 2}, "4 times in 2 layers"),
        (
            "llama",
            {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic'",
        ),
        (
            "llama4_text",
            {**SIZES, "head_dim": 10, "intermediate_size_mlp": 89, "num_local_experts": 4, "attention_chunk_size": 16},
            "neither the whole past nor one sliding window",
        ),
        (
            "minicpm3",
            {
                **SIZES,
                "num_key_value_heads": 6,
                "q_lora_rank": 11,
                "kv_lora_rank": 13,
                "qk_nope_head_dim": 6,
                "qk_rope_head_dim": 4,
                "v_head_dim": 7,
            },
            "changes keys or values between cache and attention",
        ),
    ],
)
def test_models_with_weights(
    model_type: str,
    sizes: dict[str, Any],
    reason: str,
    tmp_path: Path,
    out: Path,
    *,
    architecture_cell: Callable[..., None],
) -> None:
    tiny_models.save_config(transformers.CONFIG_MAPPING[model_type](**sizes), tmp_path / "model")
    text = refusal(tmp_path / "model", out)
    assert repr(model_type) in text
    assert reason in text
    if model_type in CELLS:
        architecture_cell(tiny_models.TITLES[model_type], "transformers", reason=CELLS[model_type])


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "vit"}, "not a causal language model"),
        ({"model_type": "gemma3n_text", "num_kv_shared_layers": 15}, "15 layers use keys and values of other layers"),
        ({"model_type": "jamba", "layers_block_type": ["mamba", "attention"]}, "'mamba'"),
        ({"model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"]}, "'linear_attention'"),
        ({"model_type": "lfm2", "layer_types": ["full_attention", "conv"]}, "'conv'"),
        ({"model_type": "lfm2_moe", "layer_types": ["conv", "full_attention"]}, "'conv'"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"model_type": "brandnew", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "code of its own"),
        ({"model_type": "brandnew"}, "lacks"),
    ],
)
def test_models_refused_by_their_config(
    config: dict[str, Any], reason: str, tmp_path: Path, out: Path, architecture_cell: Callable[..., None]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file({"x": np.zeros(3, np.float32)}, model / "model.safetensors")
    text = refusal(model, out)
    assert repr(config["model_type"]) in text
    assert reason in text
    if config["model_type"] in CELLS:
        architecture_cell(tiny_models.TITLES[config["model_type"]], "transformers", reason=CELLS[config["model_type"]])


def test_what_the_probe_cannot_see_is_caught_by_the_comparison_with_eager() -> None:
    attention_tap.register()
    config = tiny_models.ARCHITECTURES["llama"]()
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention_tap.IMPLEMENTATION)
    layers = probing.probe(model.eval())
    assert layers == (LayerReport(6, 2, 10, pytest.approx(10**-0.5), 0.0, 0),) * 2
    probing.check_against_eager(model, layers)
    # a model that scales only in its eager function would look like this
    wrong = [LayerReport(6, 2, 10, 2.0, 0.0, 0), layers[1]]
    with pytest.raises(DeltaLLMError, match="does not see: its logits differ"):
        probing.check_against_eager(model, wrong)
    assert model.config._attn_implementation == attention_tap.IMPLEMENTATION


def test_an_encoder_saved_without_a_head(tmp_path: Path, out: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=48, intermediate_size=97, num_hidden_layers=2, num_attention_heads=6, vocab_size=83
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "encoder")
    text = refusal(tmp_path / "encoder", out)
    assert "holds a BertModel" in text
    assert "not an encoder" in text
