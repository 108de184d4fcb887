"""Tiny BitNet checkpoints in every form their publishers write, and transformers' own quantised layers as the peer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from numpy.typing import NDArray
from support import hf_reference, tiny_models
from transformers.integrations import bitnet as peer

#: Form of a checkpoint → its quantization_config.
VARIANTS = {
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed, scale multiplies": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "packed, scale divides": {"linear_class": "bitlinear"},
}


def tiny_config(variant: str) -> Any:
    """Rows of more than one block of 32, 64 and 128 places, of lengths that no number of blocks divides.

    Packed rows come in fours; online, a matrix has an odd number of them.
    """
    return transformers.CONFIG_MAPPING["bitnet"](
        vocab_size=83,
        hidden_size=144,
        intermediate_size=307 if variant == "online" else 308,
        num_hidden_layers=2,
        num_attention_heads=12,
        num_key_value_heads=3,
        max_position_embeddings=130,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def save_checkpoint(directory: Path, variant: str, config: Any = None) -> Any:
    """Write a checkpoint of a random model as its publishers do.

    Args:
        directory: where to; made if missing.
        variant: a key of `VARIANTS`.
        config: `tiny_config` of the variant if None.

    Returns:
        The same model with transformers' own quantised layers, in eval mode.
    """
    tiny_models.save_config(tiny_config(variant) if config is None else config, directory)
    model = peer_model(directory, variant)
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    if variant != "online":
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            mean = weights[name].abs().mean()
            weights[name] = peer.pack_weights((weights[name] / mean).round().clamp(-1, 1))
            weights[f"{name}_scale"] = (1 / mean if variant == "packed, scale divides" else mean).reshape(1)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    edit_json(directory / "config.json", {"quantization_config": {"quant_method": "bitnet", **VARIANTS[variant]}})
    return model


def peer_model(directory: Path, variant: str) -> Any:
    """The float model of `directory` with every linear layer but the last replaced by transformers' quantised one."""
    model = hf_reference.load_eager(directory)
    for name, linear in list(model.named_modules()):
        if not isinstance(linear, torch.nn.Linear) or name == "lm_head":
            continue
        mean = linear.weight.detach().abs().mean()
        ternary = (linear.weight.detach() / mean).round().clamp(-1, 1)
        sizes = (linear.in_features, linear.out_features)
        if variant == "packed, scale divides":
            new = peer.BitLinear(*sizes, bias=False, dtype=torch.float32)
            new.weight, new.weight_scale = peer.pack_weights(ternary), 1 / mean.reshape(1)
        else:
            new = peer.AutoBitLinear(*sizes, bias=False, online_quant=variant == "online")
            new.weight = linear.weight if variant == "online" else torch.nn.Parameter(ternary)
            if variant != "online":
                new.weight_scale = mean.reshape(1)
        model.set_submodule(name, new)
    return model.eval()


def edit_json(path: Path, changes: dict[str, Any]) -> None:
    """Change the top-level fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


@contextmanager
def edge_distances(model: Any) -> Iterator[list[NDArray[np.float32]]]:
    """How near the activations of a peer model come to the edge between two of the 255 steps.

    Yields:
        One entry per call of the model while the block runs: float32 [B, S], for each token the smallest distance of
        any x·s to a half-integer, over all quantised layers.
    """
    found: list[NDArray[np.float32]] = []

    def begin(*_: Any) -> None:
        found.append(np.array(0.5, np.float32))

    def see(_: Any, inputs: Sequence[torch.Tensor]) -> None:
        activation = inputs[0].detach()
        steps = activation * (127 / activation.abs().amax(-1, keepdim=True).clamp(min=1e-5))
        found[-1] = np.minimum(found[-1], ((steps - steps.floor()) - 0.5).abs().amin(-1).numpy())

    layers = [x for x in model.modules() if isinstance(x, (peer.BitLinear, peer.AutoBitLinear))]
    hooks = [model.register_forward_pre_hook(begin), *(layer.register_forward_pre_hook(see) for layer in layers)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
