"""Load a causal LM from safetensors in float32, with our attention in place, running no code but transformers' own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import attention_tap
from deltallm_onnx.export.bitnet import BitNetScheme, bitnet_scheme, quantise_linear_layers, unpack_weights
from deltallm_onnx.export.checkpoint import stored_tensors
from deltallm_onnx.export.config_refusals import refuse_by_config, refuse_dynamic_rope
from deltallm_onnx.export.quiet import first_line, quiet
from deltallm_onnx.export.source import ModelSource, offline


def load(source: ModelSource) -> tuple[Any, list[str]]:
    """The model in eval mode, and notes for the report.

    Raises:
        DeltaLLMError: for an architecture that is no decoder-only causal LM or needs code of its own, a quantised
            checkpoint, missing weights, or weights that do not fit the config.
    """
    refuse_by_config(source)
    attention_tap.register()
    arguments: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    with quiet(), offline():
        try:
            config = transformers.AutoConfig.from_pretrained(source.directory, **arguments)
        except Exception as error:
            raise DeltaLLMError(f"Cannot use {source.directory / 'config.json'}: {first_line(error)}.") from error
        refuse_dynamic_rope(source.model_type, config)
        scheme = bitnet_scheme(source.config)
        if scheme is not None:
            del config.quantization_config  # its layers are worked out here, without transformers' kernels
        try:
            model, info = _from_pretrained(source, config, scheme)
            if scheme is not None:
                quantise_linear_layers(model, scheme)
        except Exception as error:
            if isinstance(error, KeyError) and error.args == (attention_tap.IMPLEMENTATION,):
                # older classes pick their attention from a table of their own
                raise DeltaLLMError(
                    f"A model of type {source.model_type!r} does not use transformers' attention interface, so its "
                    "attention cannot be exported."
                ) from error
            raise DeltaLLMError(f"Cannot load the weights of {source.name}: {first_line(error)}.") from error
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    if missing:
        # transformers would go on with random numbers in their place
        held = (source.config.get("architectures") or [None])[0]
        if isinstance(held, str) and held != type(model).__name__:
            raise DeltaLLMError(
                f"{source.name} holds a {held}, without {len(missing)} weights that {type(model).__name__} needs ("
                f"{missing[0]} ...): give a causal language model, not an encoder or a model without its head."
            )
        raise DeltaLLMError(
            f"{source.name} has no weights for {missing[0]} ({len(missing)} missing); get the complete checkpoint."
        )
    if hasattr(model, "set_experts_implementation"):
        # the default of mixtures of experts is a kernel without an ONNX counterpart; without experts this does nothing
        model.set_experts_implementation("batched_mm")
    notes = [f"{len(unexpected)} tensors of the checkpoint are not used, e.g. {unexpected[0]}."] if unexpected else []
    if "auto_map" in source.config:
        notes.append("The checkpoint names code of its own (auto_map); transformers' class was used, not that code.")
    return model.eval(), notes


def _from_pretrained(source: ModelSource, config: Any, scheme: BitNetScheme | None) -> tuple[Any, dict[str, Any]]:
    """The float32 model and transformers' account of which weights it found."""
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "attn_implementation": attention_tap.IMPLEMENTATION,
        "use_safetensors": True,
        "output_loading_info": True,
        "local_files_only": True,
    }
    if int(transformers.__version__.split(".")[0]) < 5:
        if scheme is not None and not scheme.online:
            raise ImportError("packed BitNet weights need transformers 5")
        # it wants a folder, or all tensors in memory
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source.directory, trust_remote_code=False, **arguments
        )
        return model, info
    # The auto class insists on a folder; it would resolve to the same class.
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    tensors: dict[str, Any] = dict(stored_tensors(source.weights))
    if scheme is not None:
        tensors = unpack_weights(tensors, scheme)
    model, info = model_class.from_pretrained(None, state_dict=tensors, **arguments)
    if (source.directory / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(source.directory, local_files_only=True)
    return model, info
