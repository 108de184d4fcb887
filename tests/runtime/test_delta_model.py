"""Rewritten models in the runtime: buffers, counters and results, against the dense model and the function bodies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare
from deltallm_onnx.runtime import DecoderModel, generate

PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]
TOLERANCE = 2e-5
COARSE = DeltaConfig(threshold=1.3, window=5, sinks=1, cache_format="float32")
TOKENS = np.random.default_rng(31).integers(0, VOCABULARY, (1, 83))

Rewritten = Callable[..., Path]


@pytest.fixture
def rewritten(dense_path: Path, tmp_path: Path) -> Rewritten:
    def make(config: DeltaConfig, *, statistics: bool = False, name: str = "delta.onnx") -> Path:
        return rewrite(dense_path, tmp_path / name, config, statistics=statistics).path

    return make


@pytest.mark.parametrize("granularity", ["row", "element"])
@pytest.mark.parametrize("use_library", [True, False])
def test_threshold_zero_is_dense(dense_path: Path, rewritten: Rewritten, granularity: str, use_library: bool) -> None:
    config = COARSE.replace(threshold=0.0, granularity=granularity, prefill="delta")
    exact = DecoderModel(rewritten(config), use_library=use_library)
    dense = DecoderModel(dense_path)
    expected, _ = dense.step(TOKENS, dense.new_cache())
    found, _ = exact.step(TOKENS, exact.new_cache())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert generate(exact, PROMPT, max_new_tokens=50).tokens == generate(dense, PROMPT, max_new_tokens=50).tokens


@pytest.mark.parametrize("cache_format", ["float32", "float16"])
@pytest.mark.parametrize("granularity", ["row", "element"])
def test_library_and_function_bodies_agree(rewritten: Rewritten, granularity: str, cache_format: str) -> None:
    """In-place buffers with spare rows against exact-size presents that are fed back."""
    path = rewritten(COARSE.replace(granularity=granularity, cache_format=cache_format), statistics=True)
    kernel, body = DecoderModel(path), DecoderModel(path, use_library=False)
    assert all(tensor.in_place for tensor in kernel.signature.caches)
    assert not any(tensor.in_place for tensor in body.signature.caches)
    caches = kernel.new_cache(), body.new_cache()
    for part in np.split(TOKENS, [20, *range(21, 60), 63], axis=1):
        (found, counts), (expected, expected_counts) = kernel.step(part, caches[0]), body.step(part, caches[1])
        # A float16 cache may round a key the other way where the two differ in its last float32 bit.
        tolerance = TOLERANCE if cache_format == "float32" else 2e-2
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        np.testing.assert_array_equal(counts, expected_counts)
    assert caches[0].bytes_in_use == caches[1].bytes_in_use == caches[1].bytes_allocated
    assert caches[0].bytes_allocated > caches[0].bytes_in_use


def test_one_call_with_prefill_delta_scores_what_decoding_gives(dense_path: Path, rewritten: Rewritten) -> None:
    """The premise of deltallm_onnx.evaluation: one call over a window equals token-by-token decoding."""
    at_once = DecoderModel(rewritten(COARSE.replace(prefill="delta"), name="at_once.onnx"))
    decoding = DecoderModel(rewritten(COARSE.replace(prefill="exact"), name="decoding.onnx"))
    whole, _ = at_once.step(TOKENS, at_once.new_cache())
    cache = decoding.new_cache()
    steps = [decoding.step(TOKENS[:, i : i + 1], cache)[0] for i in range(TOKENS.shape[1])]
    np.testing.assert_allclose(whole, np.concatenate(steps, axis=1), rtol=0, atol=TOLERANCE)
    dense = DecoderModel(dense_path)
    reference, score = compare(dense, at_once, TOKENS)
    assert score.kl_to_reference > 1e-3, "a threshold this large was to change something"
    assert score.perplexity != reference.perplexity
    read_exactly = DecoderModel(rewritten(COARSE.replace(prefill="exact")))
    assert compare(dense, read_exactly, TOKENS)[1].kl_to_reference == pytest.approx(0, abs=1e-9)


def test_counters_of_a_generation(rewritten: Rewritten) -> None:
    new_tokens = 40
    result = generate(DecoderModel(rewritten(COARSE, statistics=True)), PROMPT, max_new_tokens=new_tokens)
    counters = result.counters
    assert counters is not None
    rows = len(PROMPT) + new_tokens - 1
    assert counters.cached_tokens == result.cached_tokens == rows
    assert counters.decoded_tokens == new_tokens - 1
    coded = rows - COARSE.window - COARSE.sinks
    assert counters.delta_total == LAYERS * KV_HEADS * coded
    assert 0 < counters.delta_zero < counters.delta_total
    assert counters.qk_macs_dense == LAYERS * QUERY_HEADS * HEAD_SIZE * rows * (rows + 1) // 2
    assert counters.kv_bytes == result.cache_bytes_in_use
    row_bytes = LAYERS * KV_HEADS * HEAD_SIZE * 2 * 4
    assert counters.decode_bytes_read == row_bytes * sum(range(len(PROMPT) + 1, rows + 1))
    assert generate(DecoderModel(rewritten(COARSE)), PROMPT, max_new_tokens=3).counters is None


def test_a_model_rewritten_in_part_keeps_both_kinds_of_cache(dense_path: Path, tmp_path: Path) -> None:
    """Layer 1 has a mask of its own, made of position_ids, which no pass can understand: it stays dense."""
    model = onnx.load(dense_path)
    nodes = list(model.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == "attention.1")
    nodes[at].input[3] = "mask.1"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "axes2"))
    nodes[at:at] = [
        onnx.helper.make_node("Unsqueeze", ["position_ids", "axes2"], ["query.position"]),
        onnx.helper.make_node("LessOrEqual", ["key_position", "query.position"], ["visible.1"]),
        onnx.helper.make_node("Unsqueeze", ["visible.1", "axis1"], ["mask.1"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "mixed.onnx")
    config = COARSE.replace(threshold=0.0)
    with pytest.raises(DeltaLLMError, match=r"1 of 2 attention layers .*layer 1, node 'attention\.1'"):
        rewrite(tmp_path / "mixed.onnx", tmp_path / "delta.onnx", config)
    mixed = DecoderModel(rewrite(tmp_path / "mixed.onnx", tmp_path / "delta.onnx", config, allow_partial=True).path)
    assert [tensor.in_place for tensor in mixed.signature.caches] == [True, True, False, False]
    expected = generate(DecoderModel(dense_path), PROMPT, max_new_tokens=50).tokens
    assert generate(mixed, PROMPT, max_new_tokens=50).tokens == expected


def test_one_model_serves_several_sequences_at_once(rewritten: Rewritten) -> None:
    model = DecoderModel(rewritten(COARSE))
    prompts = [PROMPT[first:] for first in range(6)]
    alone = [generate(model, prompt, max_new_tokens=40).tokens for prompt in prompts]
    with ThreadPoolExecutor(max_workers=6) as threads:
        together = list(threads.map(lambda prompt: generate(model, prompt, max_new_tokens=40).tokens, prompts))
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) == len(prompts)


def test_a_float16_cache_is_half_as_large(rewritten: Rewritten) -> None:
    sizes = {
        name: generate(DecoderModel(rewritten(COARSE.replace(cache_format=name))), PROMPT, max_new_tokens=4)
        for name in ("float32", "float16")
    }
    assert sizes["float16"].cache_bytes_in_use * 2 == sizes["float32"].cache_bytes_in_use
