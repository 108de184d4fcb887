"""Why cells of models/README.md are empty, asked of the tools themselves."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from support import peers
from support.tiny_models import TITLES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_TYPES = {title: model_type for model_type, title in TITLES.items()} | {
    "Phi3 LongRoPE": "phi3",
    "BitNet ternary": "bitnet",
    "ChatGLM": "chatglm",
    "InternLM2": "internlm2",
}
NOT_BUILT = (
    "Arcee", "BitNet", "BitNet ternary", "BLOOM", "CodeGen", "Cohere", "Cohere2", "Falcon", "Gemma3n", "GPT-2",
    "GPT-BigCode", "GPT-J", "GPT-Neo", "GPT-NeoX", "Helium", "Mixtral", "MPT", "OLMo2", "OPT", "Qwen3-MoE", "StableLM",
    "Starcoder2",
)  # fmt: skip
NOT_EXPORTED = (
    "BitNet", "BitNet ternary", "ChatGLM", "Cohere2", "Ernie4.5", "Gemma3n", "Gemma4", "Granite-MoE-Hybrid",
    "HunYuan-Dense", "LFM2", "LFM2-MoE", "Mixtral", "Starcoder2",
)  # fmt: skip
NO_SDPA = ("CodeGen", "GPT-J", "GPT-Neo", "GPT-OSS", "MPT")
NO_CODE = [(title, source) for title in ("ChatGLM", "InternLM2") for source in ("transformers", "SDPA")]
#: What no tool can be asked.
OTHER = {
    ("InternLM2", "optimum"): "its code is not part of transformers",
    ("Phi3 LongRoPE", "optimum"): "left out: a trace keeps one of the two rotary tables",
    ("LFM2", "SDPA"): "has layers of convolutions, whose states are no keys and values",
    ("LFM2-MoE", "SDPA"): "has layers of convolutions, whose states are no keys and values",
    ("Gemma3n", "SDPA"): "has layers that use the keys and values of others",
    ("BitNet ternary", "SDPA"): "only `convert` reads packed ternary weights",
}


@pytest.mark.parametrize("title", NOT_BUILT)
def test_builder_does_not_know_it(title: str, architecture_cell: Callable[..., None]) -> None:
    spec = importlib.util.find_spec("onnxruntime_genai.models.builder")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    assert '"LlamaForCausalLM"' in text, "the builder names architectures in another way now"
    assert f'"{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_TYPES[title]]}"' not in text
    architecture_cell(title, "genai", reason="its builder does not know the architecture")


@pytest.mark.parametrize("title", NOT_EXPORTED)
def test_optimum_does_not_know_it(title: str, architecture_cell: Callable[..., None]) -> None:
    text = (peers.folder("optimum") / "optimum/exporters/onnx/model_configs.py").read_text(encoding="utf-8")
    known = re.findall(r'@register_tasks_manager_onnx\(\s*"([\w.-]+)"', text)
    assert "gpt_bigcode" in [name.replace("-", "_") for name in known]
    assert _TYPES[title].removesuffix("_text") not in [name.replace("-", "_").removesuffix("_text") for name in known]
    architecture_cell(title, "optimum", reason="optimum-onnx 0.1 does not know the architecture")


@pytest.mark.parametrize("title", NO_SDPA)
def test_transformers_has_no_sdpa_for_it(title: str, architecture_cell: Callable[..., None]) -> None:
    model_class = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[_TYPES[title]])
    assert not model_class._supports_sdpa
    architecture_cell(title, "SDPA", reason="transformers has no SDPA attention for it")


@pytest.mark.parametrize(("title", "source"), NO_CODE)
def test_transformers_does_not_know_it(title: str, source: str, architecture_cell: Callable[..., None]) -> None:
    assert _TYPES[title] not in transformers.CONFIG_MAPPING
    architecture_cell(title, source, reason="its code is not part of transformers")


@pytest.mark.parametrize(("title", "source"), OTHER)
def test_other_gaps(title: str, source: str, architecture_cell: Callable[..., None]) -> None:
    architecture_cell(title, source, reason=OTHER[title, source])
