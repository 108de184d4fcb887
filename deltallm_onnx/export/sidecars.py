"""What lies beside the ONNX file: configs and tokenizer of the model, and genai_config.json for onnxruntime-genai."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from deltallm_onnx.export.quiet import first_line, quiet
from deltallm_onnx.export.report import LayerReport
from deltallm_onnx.export.source import ModelSource, offline

_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER = "tokenizer.json"
#: Files of a tokenizer that already has its tokenizer.json; they are copied as they are.
_TOKENIZER_FILES = (
    _TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
#: Any of these means that a slow tokenizer may be there to convert.
_SLOW_TOKENIZER_FILES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt")


def copy_configs(source: ModelSource, folder: Path) -> None:
    """config.json, and generation_config.json if there is one."""
    for name in _CONFIGS:
        if (source.directory / name).is_file():
            shutil.copyfile(source.directory / name, folder / name)


def write_tokenizer(source: ModelSource, folder: Path) -> str | None:
    """Copy the tokenizer, or convert it to tokenizer.json.

    Returns:
        None, or why there is none: one sentence for the report.
    """
    if (source.directory / _TOKENIZER).is_file():
        for name in _TOKENIZER_FILES:
            if (source.directory / name).is_file():
                shutil.copyfile(source.directory / name, folder / name)
        return None
    if not any((source.directory / name).is_file() for name in _SLOW_TOKENIZER_FILES):
        return f"{source.name} has no tokenizer, so none was written."
    with quiet(), offline():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source.directory, trust_remote_code=False, local_files_only=True
            )
            tokenizer.save_pretrained(folder)
        except Exception as error:  # noqa: BLE001 - the model is whole without a tokenizer; the report says so
            return f"The tokenizer of {source.name} cannot be loaded ({first_line(error)}), so none was written."
    if not (folder / _TOKENIZER).is_file():
        return f"The tokenizer of {source.name} cannot be saved as {_TOKENIZER}: runtimes may not read it."
    return None


def limits(model: Any, layers: Sequence[LayerReport]) -> list[str]:
    """What a user of the exported model should know about it, one sentence each."""
    notes = []
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        notes.append("A mixture of experts: each token gathers its experts' weights, so long prompts need much memory.")
    if any(layer.softcap for layer in layers):
        notes.append("The dense graph has softcaps: run it with ONNX Runtime 1.27 or later, older ones mask wrongly.")
    if len({(layer.num_heads, layer.kv_num_heads, layer.head_size) for layer in layers}) > 1:
        notes.append("Layers differ in their heads; genai_config.json can only describe the first.")
    return notes


def write_genai_config(model: Any, layers: Sequence[LayerReport], file_name: str, folder: Path) -> None:
    """genai_config.json, as onnxruntime-genai reads it for a decoder with a growing cache."""
    text = json.dumps(genai_config(model, layers, file_name), indent=2)
    (folder / "genai_config.json").write_text(text + "\n", encoding="utf-8")


def genai_config(model: Any, layers: Sequence[LayerReport], file_name: str) -> dict[str, Any]:
    """The content of genai_config.json.

    The type is always "decoder": it is the generic one, while named types bring special cases (phi3 computes its cache
    anew at a fixed length) that this graph does not want.
    """
    config, generation = model.config.get_text_config(decoder=True), model.generation_config
    context = int(getattr(config, "max_position_embeddings", 0) or 2048)

    def token(name: str) -> Any:
        value = getattr(generation, name, None)
        return value if value is not None else getattr(config, name, None)

    eos = token("eos_token_id")
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    pad = token("pad_token_id")
    ids = {
        "bos_token_id": token("bos_token_id"),
        "eos_token_id": eos,
        "pad_token_id": first_eos if pad is None else pad,
    }
    return {
        "model": {
            "type": "decoder",
            # genai requires them; 0 stands for a model that names none
            **{name: 0 if value is None else value for name, value in ids.items()},
            "context_length": context,
            "vocab_size": int(config.vocab_size),
            "decoder": {
                "filename": file_name,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "head_size": layers[0].head_size,
                "hidden_size": int(config.hidden_size),
                "num_attention_heads": layers[0].num_heads,
                "num_hidden_layers": len(layers),
                "num_key_value_heads": layers[0].kv_num_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            # the standard Attention operator gives a present longer than its past
            "past_present_share_buffer": False,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 1,
            "top_p": 1.0,
        },
    }
