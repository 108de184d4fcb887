"""The bundled model, whole path: at θ = 0 it continues a text exactly as Hugging Face eager attention does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deltallm_onnx import convert, profile
from deltallm_onnx.runtime import DecoderModel, TextTokenizer, generate

DEMO = Path(__file__).parents[2] / "models" / "demo"
NEW_TOKENS = 200
PROMPT = "The door of the old house stood open, and"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "exact.onnx"
    convert(DEMO, out, profile("exact"))
    return out


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return TextTokenizer(DEMO).encode(PROMPT)


@pytest.fixture(scope="module")
def expected(prompt: list[int]) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(DEMO, attn_implementation="eager", dtype=torch.float32).eval()
    tokens, cache = [], None
    step = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            out = model(input_ids=step, past_key_values=cache, use_cache=True)
            cache, step = out.past_key_values, out.logits[:, -1:].argmax(-1)
            tokens.append(int(step))
    return tokens


@pytest.mark.parametrize("use_library", [True, False], ids=["library", "function bodies"])
def test_greedy_tokens_are_those_of_hugging_face(
    converted: Path, prompt: list[int], expected: list[int], use_library: bool
) -> None:
    model = DecoderModel(converted, use_library=use_library)
    # The text runs past the exact window, so coded rows are read.
    assert len(prompt) + NEW_TOKENS > profile("exact").window
    assert list(generate(model, prompt, max_new_tokens=NEW_TOKENS).tokens) == expected
