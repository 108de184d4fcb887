"""Load a causal LM from safetensors in float32, with our attention in place, running no code but transformers' own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import attention_tap, bitnet
from deltallm_onnx.export.bitnet import BitNetScheme
from deltallm_onnx.export.checkpoint import stored_tensors
from deltallm_onnx.export.config_refusals import refuse_by_config, refuse_dynamic_rope
from deltallm_onnx.export.quiet import first_line, quiet
from deltallm_onnx.export.source import ModelSource, offline
from deltallm_onnx.export.ternary import TernaryLinear
from deltallm_onnx.export.ternary_codes import TernaryFormat

#: transformers 4 wants a folder, or all tensors in memory.
_READS_LAZILY = int(transformers.__version__.split(".")[0]) >= 5


def load(source: ModelSource, ternary: TernaryFormat | None = None) -> tuple[Any, list[str]]:
    """The model in eval mode, and notes for the report.

    Args:
        source: a checked model directory.
        ternary: how the ternary matrices of a BitNet model are kept; None for float32. Other models have none.

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
        scheme = bitnet.bitnet_scheme(source.config)
        if scheme is not None:
            del config.quantization_config  # its layers are worked out here, without transformers' kernels
        try:
            model, info = _with_weights(source, config, scheme, ternary)
        except DeltaLLMError:
            raise
        except Exception as error:
            raise _load_refusal(source, error) from error
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


def _load_refusal(source: ModelSource, error: Exception) -> DeltaLLMError:
    if isinstance(error, KeyError) and error.args == (attention_tap.IMPLEMENTATION,):
        # older classes pick their attention from a table of their own
        return DeltaLLMError(
            f"A model of type {source.model_type!r} does not use transformers' attention interface, so its attention "
            "cannot be exported."
        )
    return DeltaLLMError(f"Cannot load the weights of {source.name}: {first_line(error)}.")


def count_parameters(model: Any) -> int:
    """Parameters of a loaded model, tied ones once, those kept as codes included."""
    floats = sum(parameter.numel() for parameter in model.parameters())
    codes = sum(x.in_features * x.out_features for x in model.modules() if isinstance(x, TernaryLinear))
    return int(floats + codes)


def _with_weights(
    source: ModelSource, config: Any, scheme: BitNetScheme | None, form: TernaryFormat | None
) -> tuple[Any, dict[str, Any]]:
    """The model and transformers' account of which weights it found."""
    if scheme is None:
        return _from_pretrained(source, config, None)
    tensors = stored_tensors(source.weights)
    if form is None:
        model, info = _from_pretrained(source, config, bitnet.float_weights(tensors, scheme))
        bitnet.quantise_float_layers(model, scheme)
        return model, info
    with torch.device("meta"):
        layers = bitnet.linear_layers(_model_class(config)(config))
    model, info = _from_pretrained(source, config, bitnet.stand_ins(tensors, scheme, layers))
    if not info["missing_keys"]:
        bitnet.ternary_layers(model, tensors, scheme, form)
    return model, info


def _model_class(config: Any) -> Any:
    # The auto class insists on a folder to load from; it would resolve to the same class.
    return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _from_pretrained(source: ModelSource, config: Any, tensors: Mapping[str, Any] | None) -> tuple[Any, dict[str, Any]]:
    """The float32 model and transformers' account of which weights it found.

    Args:
        source: the model directory.
        config: transformers' configuration.
        tensors: the weights; None for those of the directory as they are.
    """
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": torch.float32,
        "attn_implementation": attention_tap.IMPLEMENTATION,
        "use_safetensors": True,
        "output_loading_info": True,
        "local_files_only": True,
    }
    if tensors is None and not _READS_LAZILY:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            source.directory, trust_remote_code=False, **arguments
        )
        return model, info
    tensors = stored_tensors(source.weights) if tensors is None else tensors
    given = dict(tensors) if _READS_LAZILY else {name: tensor[...] for name, tensor in tensors.items()}
    model, info = _model_class(config).from_pretrained(None, state_dict=given, **arguments)
    if (source.directory / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(source.directory, local_files_only=True)
    return model, info
