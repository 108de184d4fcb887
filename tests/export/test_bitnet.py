"""BitNet checkpoints in float32: the loaded and the exported model equal transformers' own quantised layers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from support import hf_reference, tiny_models
from support.bitnet_checkpoints import VARIANTS, peer_model, save_checkpoint

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import export_model, loading
from deltallm_onnx.export.source import find_model
from deltallm_onnx.weights.formats import WeightFormat


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """The peer's functions are compiled on first use; their meaning is the same without."""
    with torch.compiler.set_stance("force_eager"):
        yield


def tiny_config() -> Any:
    config = tiny_models.ARCHITECTURES["bitnet"]()
    config.intermediate_size = 92  # four rows to a byte
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_loaded_model_equals_transformers_layers(variant: str, tmp_path: Path) -> None:
    expected = save_checkpoint(tmp_path, variant, tiny_config())
    model, notes = loading.load(find_model(tmp_path, print))
    assert notes == []
    model.set_attn_implementation("eager")
    ids = torch.arange(33).reshape(3, 11) * 5 % 83
    with torch.no_grad():
        logits, wanted = model(ids).logits, expected(ids).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


def test_exported_model_equals_transformers_layers(tmp_path: Path) -> None:
    expected = list(
        hf_reference.scenarios(save_checkpoint(tmp_path / "model", "packed, scale multiplies", tiny_config()))
    )
    export_model(tmp_path / "model", tmp_path / "dense.onnx", weights=WeightFormat("float32"))
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
    save_checkpoint(tmp_path, "online", tiny_config())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DeltaLLMError, match="quantised checkpoint"):
        loading.load(find_model(tmp_path, print))
