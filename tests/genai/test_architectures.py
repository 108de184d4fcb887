"""Every architecture that its own builder gets right: the same tokens in onnxruntime-genai before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.genai_models import BUILT_RIGHT, REMARKS
from support.genai_texts import GenaiText, random_tokens
from support.hf_reference import SHAPES

from deltallm_onnx import profile

#: A window and sinks far below the length of the texts, so that rows are coded (with θ = 0: as they are).
EXACT = profile("exact").replace(window=3, sinks=1)
#: Float32 logits of a few layers, standard deviation about 1, computed in two orders.
TOLERANCE = 1e-4
NEW_TOKENS = 64


@pytest.mark.parametrize("name", BUILT_RIGHT)
def test_same_tokens_and_logits(
    name: str,
    genai_folder: Callable[..., Path],
    rewritten_folder: Callable[..., Path],
    architecture_cell: Callable[..., None],
) -> None:
    source, target = genai_folder(name), rewritten_folder(name, EXACT)
    before, after = GenaiText(source), GenaiText(target)
    difference = 0.0
    begin = random_tokens(23)
    difference = max(difference, float(np.abs(before.append(begin) - after.append(begin)).max()))
    tokens = before.generate(NEW_TOKENS)
    assert len(set(tokens)) > 12  # a text that repeats itself would prove little
    assert after.generate(NEW_TOKENS) == tokens
    for _, rows, chunks in SHAPES:
        if len(rows) > 1:  # padding
            continue
        before, after = GenaiText(source), GenaiText(target)
        text, at = random_tokens(sum(chunks), seed=6), 0
        for size in chunks:
            chunk = text[at : at + size]
            difference = max(difference, float(np.abs(before.append(chunk) - after.append(chunk)).max()))
            at += size
    assert difference < TOLERANCE
    if " with " not in name:
        architecture_cell(name, "genai", difference=difference, reason=REMARKS.get(name))
