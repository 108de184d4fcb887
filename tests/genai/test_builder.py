"""What onnxruntime-genai's model builder gets right: its folders in its runtime against transformers' eager attention.

Only what it gets right can show that the rewriting keeps it right; for the rest models/README.md has a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from support.genai_models import BUILT_RIGHT, REMARKS, VOCABULARY, build, save_tokenizer
from support.genai_texts import scenario_error
from support.hf_reference import load_eager, scenarios

#: Float32 logits of a few layers, standard deviation about 1, computed in two orders.
TOLERANCE = 1e-4
#: What no rounding explains.
WRONG = 0.1

#: What makes the remarks of support.genai_models necessary.
BUILT_WRONG = (
    "Mistral with a window",
    "Phi3 with a window",
    "Granite-MoE-Hybrid without positions",
    "Granite-MoE-Hybrid with experts",
    "OLMo",
)
#: Architecture → the error, and what is said of it.
NOT_BUILT = {
    "Gemma3": ("KeyError: 'rope_type'", "its builder stops at Gemma3's rope parameters of transformers 5"),
    "SmolLM3": ("KeyError: 'position_ids'", "its builder stops at layers without RoPE, for a CPU"),
}
NOT_IN_TRANSFORMERS = dict.fromkeys(("ChatGLM", "InternLM2"), "its code is not part of transformers")


def difference(folder: Path) -> float:
    """Between onnxruntime-genai and transformers: the largest of any logit."""
    expected = scenarios(load_eager(folder.parent / "model"), seed=3)
    return max(scenario_error(folder, scenario) for scenario in expected if len(scenario.steps[0].input_ids) == 1)


@pytest.mark.parametrize("name", BUILT_RIGHT)
def test_the_builder_is_right(genai_folder: Callable[..., Path], name: str) -> None:
    assert difference(genai_folder(name)) < TOLERANCE


@pytest.mark.parametrize("name", BUILT_WRONG)
def test_the_builder_is_wrong(
    genai_folder: Callable[..., Path], architecture_cell: Callable[..., None], name: str
) -> None:
    assert difference(genai_folder(name)) > WRONG
    if name == "OLMo":
        architecture_cell(name, "genai", reason="its builder writes RMSNorm where OLMo has LayerNorm")
    else:
        assert name.partition(" with")[0] in REMARKS


@pytest.mark.parametrize("name", NOT_BUILT)
def test_the_builder_stops(
    genai_folder: Callable[..., Path], architecture_cell: Callable[..., None], name: str
) -> None:
    error, reason = NOT_BUILT[name]
    with pytest.raises(KeyError) as raised:
        genai_folder(name)
    assert f"KeyError: {raised.value}" == error
    architecture_cell(name, "genai", reason=reason)


def test_the_builder_stops_at_layers_of_different_sizes(architecture_cell: Callable[..., None], tmp_path: Path) -> None:
    sizes = {"head_dim": 16, "global_head_dim": 32, "num_key_value_heads": 2, "num_global_key_value_heads": 3}
    text = transformers.CONFIG_MAPPING["gemma4_unified_text"](vocab_size=VOCABULARY, **sizes)
    config = transformers.CONFIG_MAPPING["gemma4_unified"](text_config=text.to_dict())
    config.architectures = ["Gemma4UnifiedForConditionalGeneration"]
    config.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    with pytest.raises(RuntimeError, match="is a per-layer attribute"):
        build(tmp_path / "model", tmp_path / "genai")
    architecture_cell("Gemma4", "genai", reason="its builder stops at transformers 5's sizes per layer")


@pytest.mark.parametrize("name", NOT_IN_TRANSFORMERS)
def test_nothing_to_build(architecture_cell: Callable[..., None], name: str) -> None:
    architecture_cell(name, "genai", reason=NOT_IN_TRANSFORMERS[name])
