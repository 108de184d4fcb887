"""Quantised and half-precision models of onnxruntime-genai's builder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_texts import GenaiText, both, random_tokens

import deltallm_onnx
from deltallm_onnx import DeltaConfig, DeltaLLMError, profile

EXACT = profile("exact").replace(window=3, sinks=1)
SETTINGS = DeltaConfig(threshold=1.1, window=16, sinks=4)
NEW = 64


@pytest.mark.parametrize("precision", ["int4", "int8"])
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_quantised_weights(
    genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path], name: str, precision: str
) -> None:
    # computed in float32: activations rounded to 8 bits make a last bit into a step of 1/127
    settings = {"precision": precision, "accuracy_level": "1"}
    before = GenaiText(genai_folder(name, **settings))
    after = GenaiText(rewritten_folder(name, EXACT, **settings))
    prompt = random_tokens(23)
    np.testing.assert_allclose(after.append(prompt), before.append(prompt), atol=1e-4)
    tokens = before.generate(NEW)
    assert len(set(tokens)) > 12
    assert after.generate(NEW) == tokens


@pytest.mark.parametrize("cache_format", ["float16", "int8", "int4"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_quantised_weights_and_activations(
    rewritten_folder: Callable[..., Path], precision: str, cache_format: str
) -> None:
    """As the builder writes them for a CPU."""
    same = both(rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format), precision=precision))
    same(lambda text: text.append(random_tokens(40)))
    same(lambda text: text.generate(NEW))


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
def test_half_precision(genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path], name: str) -> None:
    """Built for another device; a CPU runs its operators too."""
    settings = {"precision": "fp16", "provider": "dml" if name == "Qwen3" else "webgpu"}
    before = GenaiText(genai_folder(name, **settings))
    after = GenaiText(rewritten_folder(name, EXACT, **settings))
    prompt = random_tokens(23)
    # half precision rounds by 2**-11; a few layers between the attention and the logits add up
    np.testing.assert_allclose(after.append(prompt), before.append(prompt), atol=2e-2)
    assert after.generate(8) == before.generate(8)


@pytest.mark.parametrize("cache_format", ["float32", "float16", "int8", "int4"])
def test_half_precision_in_both_runtimes(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    settings = SETTINGS.replace(cache_format=cache_format)
    same = both(rewritten_folder("Llama", settings, precision="fp16", provider="webgpu"))
    same(lambda text: text.append(random_tokens(40)))
    same(lambda text: text.generate(NEW))


def test_half_precision_for_a_cpu_does_not_decode(genai_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The builder writes MultiHeadAttention then, in a graph that reads a prompt and stops at the next token."""
    folder = genai_folder("Llama", precision="fp16")
    text = GenaiText(folder)
    text.append(random_tokens(23))
    with pytest.raises(RuntimeError, match="Shape mismatch"):
        text.generate(2)
    with pytest.raises(DeltaLLMError, match="MultiHeadAttention"):
        deltallm_onnx.rewrite(folder, tmp_path / "out", EXACT)
    assert not (tmp_path / "out").exists()
