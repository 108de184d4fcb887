"""BitNet checkpoints: the loaded and the exported model equal transformers' own quantised layers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from support import hf_reference, tiny_models
from transformers.integrations import bitnet as peer

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import export_model, loading
from deltallm_onnx.export.source import find_model

VARIANTS = {
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "packed, scale multiplies": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "packed, scale divides": {"linear_class": "bitlinear"},
}


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """The peer's functions are compiled on first use; their meaning is the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def tiny_config() -> Any:
    config = tiny_models.ARCHITECTURES["bitnet"]()
    config.intermediate_size = 92  # four rows to a byte
    return config


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


def save_variant(directory: Path, variant: str) -> Any:
    """Write a checkpoint as its publishers do; returns the peer model."""
    tiny_models.save_config(tiny_config(), directory)
    model = peer_model(directory, variant)
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    if variant != "online":
        for name in [name for name in weights if name.endswith("_proj.weight")]:
            mean = weights[name].abs().mean()
            weights[name] = peer.pack_weights((weights[name] / mean).round().clamp(-1, 1))
            weights[f"{name}_scale"] = (1 / mean if variant == "packed, scale divides" else mean).reshape(1)
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", **VARIANTS[variant]}
    (directory / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_loaded_model_equals_transformers_layers(variant: str, tmp_path: Path) -> None:
    expected = save_variant(tmp_path, variant)
    model, notes = loading.load(find_model(tmp_path, print))
    assert notes == []
    model.set_attn_implementation("eager")
    ids = torch.arange(33).reshape(3, 11) * 5 % 83
    with torch.no_grad():
        logits, wanted = model(ids).logits, expected(ids).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


def test_exported_model_equals_transformers_layers(tmp_path: Path) -> None:
    expected = list(hf_reference.scenarios(save_variant(tmp_path / "model", "packed, scale multiplies")))
    export_model(tmp_path / "model", tmp_path / "dense.onnx")
    errors = hf_reference.largest_error(onnxruntime.InferenceSession(tmp_path / "dense.onnx"), expected)
    # an activation that lies on the edge between two of the 255 steps may fall to either side
    assert np.median(list(errors.values())) < 1e-4, errors
    assert max(errors.values()) < 0.05, errors


def test_the_quantisation_matters(tmp_path: Path) -> None:
    tiny_models.save_config(tiny_config(), tmp_path)
    ids = torch.arange(11)[None]
    with torch.no_grad():
        plain = hf_reference.load_eager(tmp_path)(ids).logits
        assert (peer_model(tmp_path, "online")(ids).logits - plain).abs().max() > 0.1


@pytest.mark.parametrize("change", [{"use_rms_norm": True}, {"modules_to_not_convert": ["model.layers.0"]}])
def test_other_variants_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save_variant(tmp_path, "online")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeltaLLMError, match="quantised checkpoint"):
        loading.load(find_model(tmp_path, print))
