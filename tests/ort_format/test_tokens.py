"""An .ort gives what the .onnx it was made from gives: with the library's kernels, or with the bodies written out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from support.tiny_decoder import LAYERS, VOCABULARY

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.ort_format import OrtForm, OrtPlatform, write_ort
from deltallm_onnx.runtime import DecoderModel, generate, ops_library_path
from deltallm_onnx.runtime.ort_file import read_ort_file, required_operators
from deltallm_onnx.runtime.session_settings import LOW_MEMORY

PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]
NEW = 190
#: Of function bodies, which are slow: half of the tokens lie behind the window.
BODIES_NEW = 50
TOKENS = np.random.default_rng(31).integers(0, VOCABULARY, (2, 83))
Rewritten = Callable[[str], Path]
Frozen = Callable[[str, OrtForm], Path]


def same(left: DecoderModel, right: DecoderModel, new: int = NEW) -> None:
    """Tokens, logits and counts, bit by bit: both sessions run the same kernels on the same graph."""
    caches = left.new_cache(batch=2), right.new_cache(batch=2)
    for part in np.split(TOKENS, [20, 21, 22, 63], axis=1):
        (found, counts), (expected, expected_counts) = left.step(part, caches[0]), right.step(part, caches[1])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(counts, expected_counts)
        assert len(counts) == LAYERS
    assert caches[0].bytes_in_use == caches[1].bytes_in_use
    found_text, expected_text = (generate(model, PROMPT, max_new_tokens=new) for model in (left, right))
    assert found_text.tokens == expected_text.tokens
    assert len(set(found_text.tokens)) > VOCABULARY // 3, "tokens that hardly change prove little"
    assert found_text.counters == expected_text.counters
    assert found_text.cache_bytes_allocated == expected_text.cache_bytes_allocated


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4", "unfused"])
def test_kernels_give_what_the_onnx_gives(rewritten: Rewritten, frozen: Frozen, name: str) -> None:
    model = DecoderModel(frozen(name, "operator"))
    assert model.uses_library
    same(model, DecoderModel(rewritten(name)))


@pytest.mark.parametrize("name", ["float32", "float16", "unfused"])
def test_bodies_give_what_the_onnx_gives_without_the_library(
    rewritten: Rewritten, frozen: Frozen, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = DecoderModel(rewritten(name), use_library=False)
    with_kernels = generate(DecoderModel(rewritten(name)), PROMPT, max_new_tokens=BODIES_NEW).tokens
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", "/nowhere/libdeltallm_ops.so")
    for use_library in (True, False):
        model = DecoderModel(frozen(name, "fallback"), use_library=use_library)
        assert not model.uses_library
        assert not any(cache.in_place for cache in model.signature.caches)
        same(model, expected, BODIES_NEW)
    if name != "float16":  # where a held key may round the other way
        assert generate(model, PROMPT, max_new_tokens=BODIES_NEW).tokens == with_kernels


def test_bodies_run_even_where_the_library_is_registered(frozen: Frozen) -> None:
    path = frozen("float32", "fallback")
    assert not any(domain == "ai.deltallm" for domain, _ in required_operators(path))
    feeds = {
        "input_ids": TOKENS,
        "attention_mask": np.ones_like(TOKENS),
        "position_ids": np.broadcast_to(np.arange(TOKENS.shape[1]), TOKENS.shape),
    }
    caches = DecoderModel(path).signature.caches
    feeds |= {cache.past: np.zeros((2, cache.kv_heads, 0, cache.last), cache.dtype) for cache in caches}
    results = []
    for library in (None, ops_library_path()):
        options = ort.SessionOptions()
        if library is not None:
            options.register_custom_ops_library(str(library))
        results.append(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("platform", ["arm", "amd64"])
def test_every_platform_opens_here(rewritten: Rewritten, tmp_path: Path, platform: OrtPlatform) -> None:
    path = write_ort(rewritten("int8"), tmp_path / "model.ort", platform=platform).model
    same(DecoderModel(path), DecoderModel(rewritten("int8")))


def test_a_dense_model_needs_no_library(dense_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = generate(DecoderModel(dense_path), PROMPT, max_new_tokens=NEW).tokens
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", "/nowhere/libdeltallm_ops.so")
    model = DecoderModel(write_ort(dense_path, tmp_path / "dense.ort").model, settings=LOW_MEMORY)
    assert generate(model, PROMPT, max_new_tokens=NEW).tokens == expected


@pytest.mark.parametrize("name", ["float32", "int4"])
def test_kernels_cannot_be_done_without(frozen: Frozen, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = frozen(name, "operator")
    with pytest.raises(DeltaLLMError) as refusal:
        DecoderModel(path, use_library=False)
    for part in (path, "libdeltallm_ops", "register_custom_ops_library", "--no-library", "--ort-form fallback"):
        assert str(part) in str(refusal.value)
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", "/nowhere/libdeltallm_ops.so")
    with pytest.raises(DeltaLLMError) as refusal:
        DecoderModel(path)
    for part in (path, "register_custom_ops_library", "DELTALLM_OPS_LIBRARY names /nowhere/libdeltallm_ops.so"):
        assert str(part) in str(refusal.value)
    # What ONNX Runtime itself would say of it names no library.
    with pytest.raises(Exception, match="DeltaAttention"):
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_a_graph_that_is_frozen_cannot_be_edited(frozen: Frozen) -> None:
    path = frozen("float32", "operator")
    with pytest.raises(DeltaLLMError, match=r"ONNX Runtime's own format: give the \.onnx"):
        DecoderModel(path, edit=lambda _: None)


def test_the_file_keeps_the_configuration(rewritten: Rewritten, frozen: Frozen) -> None:
    expected = DecoderModel(rewritten("int4")).metadata
    assert {"deltallm.config", "deltallm.version"} <= set(expected)
    for path in (frozen("int4", "operator"), frozen("float16", "fallback")):
        stored = {entry.key: entry.value for entry in read_ort_file(path).metadata_props}
        assert set(stored) == set(expected)
        assert stored["deltallm.version"] == expected["deltallm.version"]
    session = ort.InferenceSession(str(frozen("float16", "fallback")), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == stored
