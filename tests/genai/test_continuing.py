"""Texts that go on after a generation in onnxruntime-genai, and searches with several beams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_texts import END, GenaiText, both, generate_batch, random_tokens

from deltallm_onnx import DeltaConfig, profile

SETTINGS = DeltaConfig(threshold=1.1, window=16, sinks=4)
EXACT = profile("exact").replace(window=3, sinks=1)


@pytest.mark.parametrize("cache_format", ["float32", "float16", "int8", "int4"])
def test_turns(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    same = both(rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format)))
    for turn, (asked, answered) in enumerate(((9, 41), (23, 1), (1, 17), (14, 30))):
        same(lambda text, asked=asked, turn=turn: text.append(random_tokens(asked, seed=turn)))
        same(lambda text, answered=answered: text.generate(answered))


def test_a_turn_after_the_end_token(genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]) -> None:
    """onnxruntime-genai does not keep an end token, so nothing is left to run."""
    tokens = []
    for folder in (genai_folder("Llama"), rewritten_folder("Llama", EXACT)):
        text = GenaiText(folder, may_end=True)
        text.append(random_tokens(10, seed=1))
        text.generate_to_end()
        answered = text.tokens
        assert END not in answered[10:]
        text.append(random_tokens(7), run_last=False)
        text.generate(12)
        tokens.append(text.tokens)
        whole = GenaiText(folder)
        whole.append(text.tokens[:-12])
        assert whole.generate(12) == text.tokens[-12:]
    assert tokens[0] == tokens[1]


def test_a_turn_behind_a_broken_off_one_needs_the_last_token_run(
    genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]
) -> None:
    """onnxruntime-genai 0.18 leaves it out of its caches, in models of its own builder too."""
    logits = {}
    for folder in (genai_folder("Llama"), rewritten_folder("Llama", EXACT)):
        for run_last in (False, True):
            text = GenaiText(folder)
            text.append(random_tokens(10))
            text.generate(5)
            logits[folder, run_last] = text.append(random_tokens(3, seed=6), run_last=run_last)
    source, source_run, target, target_run = logits.values()
    assert np.abs(source - source_run).max() > 0.1
    np.testing.assert_allclose(target, source, atol=1e-4)
    np.testing.assert_allclose(target_run, source_run, atol=1e-4)


def test_a_packed_cache_with_a_token_left_out_is_refused(rewritten_folder: Callable[..., Path]) -> None:
    text = GenaiText(rewritten_folder("Llama", SETTINGS.replace(cache_format="int8")))
    text.append(random_tokens(10))
    text.generate(60)
    with pytest.raises(RuntimeError, match="has 49 coded tokens, but a past of 70 tokens has at least 50"):
        text.append(random_tokens(3), run_last=False)


def test_beams(genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]) -> None:
    rows = [random_tokens(20)]
    found = [
        generate_batch(folder, rows, length=90, beams=3)
        for folder in (genai_folder("Llama"), rewritten_folder("Llama", EXACT))
    ]
    assert found[0] == found[1]
    assert found[0] != generate_batch(genai_folder("Llama"), rows, length=90)
