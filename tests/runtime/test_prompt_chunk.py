"""Prompts that are read in several calls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import VOCABULARY

from deltallm_onnx import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, generate

PROMPT = [int(token) for token in np.random.default_rng(11).integers(0, VOCABULARY, 53)]


@pytest.mark.parametrize("chunk", [1, 7, 52, 53, 1000])
def test_chunks_change_nothing_in_a_dense_model(dense_path: Path, chunk: int) -> None:
    model = DecoderModel(dense_path)
    whole = generate(model, PROMPT, max_new_tokens=20)
    parts = generate(model, PROMPT, max_new_tokens=20, prompt_chunk=chunk)
    assert parts.tokens == whole.tokens
    assert (parts.prompt_tokens, parts.cached_tokens) == (whole.prompt_tokens, whole.cached_tokens)


@pytest.mark.parametrize("prefill", ["exact", "delta"])
def test_chunks_leave_the_same_in_the_caches(dense_path: Path, tmp_path: Path, prefill: str) -> None:
    config = DeltaConfig(threshold=0.9, window=9, sinks=1, prefill=prefill)  # type: ignore[arg-type]  # one of its names
    path = tmp_path / "delta.onnx"
    rewrite(dense_path, path, config)
    model = DecoderModel(path)
    whole = generate(model, PROMPT, max_new_tokens=1)
    parts = generate(model, PROMPT, max_new_tokens=1, prompt_chunk=16)
    assert whole.counters is not None
    assert parts.counters is not None
    # Every token is coded once, whatever the calls; the calls of one prompt add up.
    assert parts.counters.delta_total == whole.counters.delta_total > 0
    assert parts.counters.qk_macs_dense == whole.counters.qk_macs_dense
    assert parts.cache_bytes_in_use == whole.cache_bytes_in_use
    if prefill == "delta":
        assert parts.tokens == whole.tokens
        assert parts.counters.delta_zero == whole.counters.delta_zero
        assert parts.counters.qk_macs_skipped == whole.counters.qk_macs_skipped
    else:
        # One call reads every key exactly; what left the window before a later call is read as it is held.
        assert whole.counters.qk_macs_skipped == 0 < parts.counters.qk_macs_skipped


def test_a_chunk_of_nothing_is_refused(dense_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="prompt-chunk is 0: give a whole number of at least 1"):
        generate(DecoderModel(dense_path), PROMPT, max_new_tokens=1, prompt_chunk=0)
