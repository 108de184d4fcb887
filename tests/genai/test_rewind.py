"""Generator.rewind_to in onnxruntime-genai: what comes after is what our own runtime says, or the operator refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_texts import GenaiText, both, random_tokens

from deltallm_onnx import DeltaConfig, profile

SETTINGS = DeltaConfig(threshold=1.1, window=16, sinks=4)
FORMATS = ("float32", "float16", "int8", "int4")
PROMPT, NEW = 40, 60


@pytest.mark.parametrize("cache_format", FORMATS)
@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Qwen3"])
def test_inside_the_window(rewritten_folder: Callable[..., Path], name: str, cache_format: str) -> None:
    same = both(rewritten_folder(name, SETTINGS.replace(cache_format=cache_format)))
    same(lambda text: text.append(random_tokens(PROMPT)))
    same(lambda text: text.generate(NEW))
    for back, new in ((10, 5), (1, 1), (3, 12)):
        same(lambda text, back=back: text.rewind(text.length - back))
        same(lambda text, new=new: text.append(random_tokens(new, seed=new)))
        same(lambda text: text.generate(7))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_rows_that_do_not_merge_are_taken_back_from_anywhere(
    rewritten_folder: Callable[..., Path], cache_format: str
) -> None:
    same = both(rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format, granularity="element")))
    same(lambda text: text.append(random_tokens(PROMPT)))
    same(lambda text: text.generate(NEW))
    same(lambda text: text.rewind(PROMPT // 3))
    same(lambda text: text.append(random_tokens(5, seed=6)))
    same(lambda text: text.generate(NEW))


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_merged_rows_are_not_taken_back(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    text = GenaiText(rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format)))
    text.append(random_tokens(PROMPT))
    text.generate(NEW)
    text.rewind(60)
    with pytest.raises(RuntimeError, match=r"is rewound to 60 tokens, but .* merged into runs"):
        text.append(random_tokens(5))
    text.rewind(0)
    text.append(random_tokens(5))


@pytest.mark.parametrize("cache_format", FORMATS)
def test_to_the_beginning(rewritten_folder: Callable[..., Path], cache_format: str) -> None:
    folder = rewritten_folder("Llama", SETTINGS.replace(cache_format=cache_format))
    used, fresh = GenaiText(folder), GenaiText(folder)
    used.append(random_tokens(PROMPT))
    used.generate(NEW)
    used.rewind(0)
    np.testing.assert_array_equal(used.append(random_tokens(31, seed=6)), fresh.append(random_tokens(31, seed=6)))
    assert used.generate(NEW) == fresh.generate(NEW)


def test_without_a_threshold_nothing_remembers_what_was_taken_back(rewritten_folder: Callable[..., Path]) -> None:
    folder = rewritten_folder("Llama", profile("exact").replace(window=3, sinks=1))
    used, fresh = GenaiText(folder), GenaiText(folder)
    used.append(random_tokens(PROMPT))
    used.generate(NEW)
    used.rewind(20)
    fresh.append(random_tokens(PROMPT)[:20])
    logits = used.append(random_tokens(8, seed=6)), fresh.append(random_tokens(8, seed=6))
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert used.generate(NEW) == fresh.generate(NEW)


def test_caches_are_shared_because_genai_would_cut_packed_ones(rewritten_folder: Callable[..., Path]) -> None:
    """Not shared, a rewound cache is its first rows: no packed cache of fewer tokens, which is not always noticed."""
    folder = rewritten_folder("Llama", SETTINGS.replace(cache_format="int8"))

    def rewound(*, shared: bool) -> object:
        text = GenaiText(folder, overlay={"search": {"past_present_share_buffer": shared}})
        text.append(random_tokens(PROMPT))
        text.generate(NEW)
        text.rewind(PROMPT + NEW - 10)
        try:
            return text.append(random_tokens(5)).tolist()
        except RuntimeError as error:
            return str(error)

    right, cut = rewound(shared=True), rewound(shared=False)
    assert isinstance(right, list)
    assert cut != right
