"""Texts beyond what a model was first made for, and layers that see a window of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_models import CONTEXT
from support.genai_texts import GenaiText, OwnText, both, random_tokens

from deltallm_onnx import DeltaConfig, profile

SETTINGS = DeltaConfig(threshold=1.1, window=16, sinks=4)
EXACT = profile("exact").replace(window=3, sinks=1)
#: onnxruntime-genai runs a text of model type phi3 again from its beginning when it has got so long.
BEGINS_ANEW = 4097


@pytest.mark.parametrize("cache_format", ["float16", "int8", "int4"])
def test_rotary_tables_change_inside_a_text(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    """LongRoPE takes the factors for long texts from 17 tokens on; keys that are there keep theirs."""
    same = both(rewritten_folder("Phi3 LongRoPE", SETTINGS.replace(cache_format=cache_format)))
    same(lambda text: text.append(random_tokens(9)))
    same(lambda text: text.generate(30))
    same(lambda text: text.rewind(27))
    same(lambda text: text.append(random_tokens(11, seed=6)))
    same(lambda text: text.generate(100))


def test_phi3_begins_anew(genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]) -> None:
    name, prompt, settings = "Phi3 of 4200 tokens", random_tokens(BEGINS_ANEW - 5), {"max_length": 4200}
    texts = [GenaiText(folder, **settings) for folder in (genai_folder(name), rewritten_folder(name, EXACT))]
    generated = []
    for text in texts:
        text.append(prompt)
        generated.append(text.generate(20))
    assert generated[0] == generated[1]

    folder = rewritten_folder(name, SETTINGS)
    genai, own = GenaiText(folder, **settings), OwnText(folder / "model.onnx", **settings)
    genai.append(prompt)
    own.append(prompt)
    first = own.generate(5)
    own.rewind(0)
    own.append(prompt + first)
    assert genai.generate(20) == first + own.generate(15)


def test_a_window_that_the_builder_dropped(
    genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]
) -> None:
    """genai_config.json gives every cache of the source the rows of a window that no layer has: the note says so."""
    name, prompt = "Mistral with a window", random_tokens(60)
    with pytest.raises(RuntimeError, match="past_sequence_length"):
        GenaiText(genai_folder(name)).append(prompt)
    same = both(rewritten_folder(name, EXACT))
    same(lambda text: text.append(prompt))
    same(lambda text: text.generate(20))


def test_sliding_windows_keep_every_row(
    genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]
) -> None:
    """The builder's caches of local layers hold their window of 7 tokens and 16 more, ours whole texts."""
    rows = []
    for folder in (genai_folder("Gemma2"), rewritten_folder("Gemma2", EXACT)):
        text = GenaiText(folder)
        text.append(random_tokens(60))
        rows.append([text.cache_rows(layer) for layer in range(3)])
    assert rows[0] == [7 + 16, CONTEXT, 7 + 16]
    assert rows[1] == [CONTEXT] * 3


def test_a_builder_that_drops_the_window_makes_caches_too_small(
    genai_folder: Callable[..., Path], rewritten_folder: Callable[..., Path]
) -> None:
    """Mistral's caches hold a window that its attention does not have: stock onnxruntime-genai stops behind it."""
    text = GenaiText(genai_folder("Mistral with a window"))
    text.append(random_tokens(20))
    with pytest.raises(RuntimeError, match="GroupQueryAttention"):
        text.generate(40)
    # rewritten, it is the model that the graph is: one without a window
    same = both(rewritten_folder("Mistral with a window", EXACT))
    same(lambda text: text.append(random_tokens(20)))
    same(lambda text: text.generate(200))
    plain = GenaiText(genai_folder("Mistral"))
    windowless = GenaiText(rewritten_folder("Mistral with a window", EXACT))
    # the tiny models differ in the scale of the logits only
    logits = [text.append(random_tokens(60)) for text in (plain, windowless)]
    np.testing.assert_allclose(*(values / values.std() for values in logits), atol=1e-4)
