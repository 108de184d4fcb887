"""Architectures and checkpoints that their configuration alone rules out."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.bitnet import bitnet_scheme
from deltallm_onnx.export.source import ModelSource

#: Names configs use for the kind of each layer; anything but attention there cannot be exported.
_LAYER_KIND_KEYS = ("layer_types", "layers_block_type", "block_types")
_ATTENTION_KINDS = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})


def refuse_by_config(source: ModelSource) -> None:
    """Refuse what config.json alone shows to be out of reach, before anything is loaded.

    Raises:
        DeltaLLMError: for an architecture transformers lacks or that is no decoder-only causal LM, a quantised
            checkpoint other than BitNet's, layers that are no attention, and layers that share keys and values.
    """
    config, kind = source.config, source.model_type
    if kind not in transformers.CONFIG_MAPPING and "auto_map" in config:
        raise DeltaLLMError(
            f"{source.name} is of type {kind!r} and needs code of its own (auto_map), which is never run; only "
            "architectures that transformers itself implements can be exported."
        )
    if kind not in transformers.CONFIG_MAPPING:
        raise DeltaLLMError(f"{source.name} is of type {kind!r}, which transformers {transformers.__version__} lacks.")
    if config.get("is_encoder_decoder"):
        raise DeltaLLMError(
            f"A model of type {kind!r} is an encoder-decoder; only decoder-only models can be exported."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise DeltaLLMError(f"A model of type {kind!r} is not a causal language model; only those can be exported.")
    if config.get("quantization_config") and bitnet_scheme(config) is None:
        raise DeltaLLMError(
            f"{source.name}, of type {kind!r}, is a quantised checkpoint; give the float checkpoint it was made from."
        )
    if config.get("num_kv_shared_layers"):
        raise DeltaLLMError(
            f"A model of type {kind!r} lets {config['num_kv_shared_layers']} layers use keys and values of other "
            "layers; every layer must have its own to be exported."
        )
    for key in _LAYER_KIND_KEYS:
        kinds = config.get(key)
        other = [x for x in kinds if x not in _ATTENTION_KINDS] if isinstance(kinds, list) else []
        if other:
            raise DeltaLLMError(
                f"A model of type {kind!r} has layers of kind {str(other[0])!r}; only models whose every layer is "
                "attention can be exported."
            )


def refuse_dynamic_rope(kind: str, config: Any) -> None:
    """Refuse rotary frequencies that are computed anew in Python whenever a sequence grows.

    Args:
        kind: the model type, for the sentence.
        config: the parsed transformers configuration.

    Raises:
        DeltaLLMError: if any layer's rope_type is a dynamic one, or LongRoPE under transformers 4, which is one there.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for parameters in (rope, *rope.values()):  # one set, or one per kind of layer
        if not isinstance(parameters, dict):
            continue
        rope_type = str(parameters.get("rope_type", parameters.get("type", "")))
        if rope_type == "longrope" and transformers.__version__.startswith("4."):
            raise DeltaLLMError(
                f"A model of type {kind!r} uses LongRoPE, which can be traced from transformers 5 on, and this is "
                f"{transformers.__version__}: upgrade transformers to export it."
            )
        if "dynamic" in rope_type:
            raise DeltaLLMError(
                f"A model of type {kind!r} recomputes its rotary embedding as a sequence grows (rope_type "
                f"{rope_type!r}), which a graph cannot; choose another rope_type to export it."
            )
