"""The folder that onnxruntime-genai opens: a random decoder of bench.llama with a genai_config.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.contenders import group_query
from bench.llama import LlamaConfig, write_model, write_weights


def write_genai_folder(config: LlamaConfig, folder: Path, *, accuracy_level: int) -> Path:
    """Write the model as onnxruntime-genai's builder does: GroupQueryAttention with float32 caches; no tokenizer.

    Args:
        config: of the decoder.
        folder: made if it is missing; weights of the right size that lie there are kept.
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits, 1 computes in float32.

    Returns:
        The folder.
    """
    write_weights(config, folder)
    model = write_model(config, group_query("float32"), folder, accuracy_level=accuracy_level)
    text = json.dumps(_genai_config(config, model.name), indent=4)
    (folder / "genai_config.json").write_text(text + "\n", encoding="utf-8")
    return folder


def _genai_config(config: LlamaConfig, file_name: str) -> dict[str, Any]:
    geometry = config.geometry
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": file_name,
        "head_size": geometry.head_size,
        "hidden_size": config.hidden_size,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **names},
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": geometry.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": geometry.kv_heads,
    }
    model = {
        "type": "llama",
        "vocab_size": config.vocabulary,
        "context_length": config.positions,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": config.positions, "past_present_share_buffer": True}
    return {"model": model, "search": search}
