"""Every cache format inside onnxruntime-genai: bit by bit what our own runtime computes with the same calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_models import CONTEXT
from support.genai_texts import GenaiText, both, generate_batch, random_tokens

from deltallm_onnx import DeltaConfig

#: Long texts hold, merge, code and seal rows with these, and give them up behind sliding windows of 7 tokens.
SETTINGS = DeltaConfig(threshold=1.1, window=16, sinks=4)
FORMATS = ("float32", "float16", "int8", "int4")


@pytest.mark.parametrize("cache_format", FORMATS)
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_chunks_and_a_long_text(rewritten_folder: Callable[..., Path], name: str, cache_format: str) -> None:
    same = both(rewritten_folder(name, SETTINGS.replace(cache_format=cache_format)))
    same(lambda text: text.append(random_tokens(23)))
    same(lambda text: text.append(random_tokens(38, seed=6)))
    same(lambda text: text.generate(230))
    same(lambda text: text.append(random_tokens(7, seed=7)))
    same(lambda text: text.generate(CONTEXT - 23 - 38 - 230 - 7))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_keys_are_held(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    """Otherwise the tests of this folder would prove little."""
    logits = []
    for threshold in (0.0, SETTINGS.threshold):
        settings = SETTINGS.replace(cache_format=cache_format, threshold=threshold)
        text = GenaiText(rewritten_folder("Llama", settings))
        text.append(random_tokens(60))
        logits.append(text.append(random_tokens(1, seed=6)))
    assert np.abs(logits[0] - logits[1]).max() > 0.1


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_rows_of_a_batch_do_not_meet(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    folder = rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format))
    rows = [random_tokens(20, seed=seed) for seed in (1, 2, 3)]
    for row, together in zip(rows, generate_batch(folder, rows, length=100), strict=True):
        alone = GenaiText(folder)
        alone.append(row)
        assert alone.generate(80) == together[20:]


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
def test_a_prompt_that_genai_cuts_into_chunks(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    folder, prompt = rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format)), random_tokens(43)
    cut = GenaiText(folder, overlay={"search": {"chunk_size": 16}})
    chunks = GenaiText(folder)
    logits = [chunks.append(prompt[at : at + 16]) for at in range(0, len(prompt), 16)]
    np.testing.assert_array_equal(cut.append(prompt), logits[-1])
    assert cut.generate(30) == chunks.generate(30)
