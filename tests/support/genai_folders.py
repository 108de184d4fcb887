"""Folders as onnxruntime-genai's model builder writes them, made by hand: no torch, and every fault can be planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from support.attention_models import GraphBuilder
from support.grouped_query_models import HEAD_SIZE, KV_HEADS, QUERY_HEADS, grouped_query_model

#: Tokens that the configuration allows; fewer than POSITIONS of the rotary tables.
CONTEXT = 47


def genai_config(**decoder: Any) -> dict[str, Any]:
    """A genai_config.json of the builder's 0.18, with further fields of `model.decoder`."""
    return {
        "model": {
            "bos_token_id": 1,
            "context_length": CONTEXT,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx",
                "head_size": HEAD_SIZE,
                "hidden_size": 52,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": QUERY_HEADS,
                "num_hidden_layers": 2,
                "num_key_value_heads": KV_HEADS,
                **decoder,
            },
            "eos_token_id": [2, 9],
            "pad_token_id": 0,
            "type": "llama",
            "vocab_size": 71,
        },
        "search": {"max_length": CONTEXT, "past_present_share_buffer": False, "temperature": 0.7, "top_p": 1.0},
    }


def write_genai_folder(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    changed: Callable[[GraphBuilder], None] | None = None,
    **attributes: Any,
) -> Path:
    """Two layers with packed QKV and rotary inside, a configuration and a tokenizer.

    Args:
        folder: to make.
        config: of genai_config.json; the builder's own if None.
        changed: edits the finished graph.
        attributes: of the GroupQueryAttention nodes.
    """
    folder.mkdir(parents=True)
    model = grouped_query_model(packed=True, rotary=True, changed=changed, **attributes)
    model.producer_name = "onnxruntime-genai"
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    # Every tensor of the builder lies in one data file.
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0
    )
    text = json.dumps(genai_config() if config is None else config, indent=4)
    (folder / "genai_config.json").write_text(text)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The genai_config.json of a folder."""
    data: dict[str, Any] = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    return data
