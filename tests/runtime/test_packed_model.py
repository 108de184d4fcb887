"""Models with packed caches in the runtime: buffers, growth, counters, and how far they are from the dense model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare
from deltallm_onnx.inspect import inspect_model
from deltallm_onnx.packed_sizes import PackedSizes
from deltallm_onnx.runtime import DecoderModel, cache_spec, generate
from deltallm_onnx.runtime.cache import CAPACITY_ROWS
from deltallm_onnx.runtime.packed_usage import packed_bytes_in_use

FORMATS = ("int8", "int4")
PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]
COARSE = DeltaConfig(threshold=1.3, window=9, sinks=1, prefill="delta")
TOKENS = np.random.default_rng(31).integers(0, VOCABULARY, (1, 225))
#: Largest difference of a logit from the dense model's at θ = 0, where logits are of order ten: int8 rows are off by
#: half a step of max|k| / 127 per channel, sealed int4 rows by half a step of a range / 15.
LOGITS = {"int8": 0.6, "int4": 6.0}

Rewritten = Callable[..., Path]


@pytest.fixture
def rewritten(dense_path: Path, tmp_path: Path) -> Rewritten:
    def make(config: DeltaConfig, *, statistics: bool = False) -> Path:
        name = f"{config.cache_format}.{config.prefill}.onnx"
        return rewrite(dense_path, tmp_path / name, config, statistics=statistics).path

    return make


@pytest.mark.parametrize("cache_format", FORMATS)
def test_threshold_zero_is_near_the_dense_model(dense_path: Path, rewritten: Rewritten, cache_format: str) -> None:
    config = COARSE.replace(threshold=0.0, cache_format=cache_format)
    packed, dense = DecoderModel(rewritten(config)), DecoderModel(dense_path)
    expected, _ = dense.step(TOKENS, dense.new_cache())
    found, _ = packed.step(TOKENS, packed.new_cache())
    error = np.abs(found - expected)
    assert error.max() < LOGITS[cache_format]
    assert np.sqrt((error**2).mean()) < LOGITS[cache_format] / 5


@pytest.mark.parametrize("cache_format", FORMATS)
def test_growing_buffers_hold_what_one_large_buffer_holds(rewritten: Rewritten, cache_format: str) -> None:
    model = DecoderModel(rewritten(COARSE.replace(cache_format=cache_format, threshold=0.4), statistics=True))
    grown, large = model.new_cache(), model.new_cache(limit=TOKENS.shape[1])
    sizes = set()
    whole, _ = model.step(TOKENS, large)
    for part in np.split(TOKENS, [17, *range(18, 80), 180], axis=1):
        logits, counts = model.step(part, grown)
        sizes.add(grown.capacity(model.signature.caches[0]))
    assert len(sizes) >= 2
    assert all(rows % CAPACITY_ROWS == 0 for rows in sizes)
    np.testing.assert_allclose(logits, whole[:, 180:], rtol=0, atol=LOGITS[cache_format] / 20)
    assert grown.bytes_in_use == large.bytes_in_use == sum(int(layer[:, 6].sum()) for layer in counts)
    assert grown.bytes_in_use < grown.bytes_allocated


@pytest.mark.parametrize("cache_format", FORMATS)
def test_generation_counts_bytes_and_runs(rewritten: Rewritten, cache_format: str) -> None:
    path = rewritten(COARSE.replace(cache_format=cache_format, prefill="exact"), statistics=True)
    result = generate(DecoderModel(path), PROMPT, max_new_tokens=90)
    counters = result.counters
    assert counters is not None
    assert 0 < counters.delta_zero < counters.delta_total
    assert counters.delta_total == LAYERS * KV_HEADS * (len(PROMPT) + 89 - 10)
    assert counters.kv_bytes == result.cache_bytes_in_use <= result.cache_bytes_allocated
    # A held token takes no row, unless it is the first coded one of its head, which cannot join a sink.
    row_bytes = 2 * (HEAD_SIZE + 4)
    saved, rest = divmod(LAYERS * KV_HEADS * result.cached_tokens * row_bytes - result.cache_bytes_in_use, row_bytes)
    assert rest == 0
    assert 0 <= counters.delta_zero - saved <= LAYERS * KV_HEADS


@pytest.mark.parametrize("cache_format", FORMATS)
def test_compare_scores_a_packed_model(dense_path: Path, rewritten: Rewritten, cache_format: str) -> None:
    dense = DecoderModel(dense_path)
    near = DecoderModel(rewritten(COARSE.replace(cache_format=cache_format, threshold=0.0)))
    _, score = compare(dense, near, TOKENS[:, :120])
    assert 0 < score.kl_to_reference < {"int8": 2e-2, "int4": 2e-2}[cache_format]
    far = DecoderModel(rewritten(COARSE.replace(cache_format=cache_format)))
    assert compare(dense, far, TOKENS[:, :120])[1].kl_to_reference > 3 * score.kl_to_reference


@pytest.mark.parametrize("cache_format", FORMATS)
def test_the_file_says_what_it_is(rewritten: Rewritten, cache_format: str) -> None:
    path = rewritten(COARSE.replace(cache_format=cache_format))
    dtype, last = cache_spec(cache_format, HEAD_SIZE)
    model = DecoderModel(path)
    assert {(tensor.dtype, tensor.last) for tensor in model.signature.caches} == {(dtype, last)}
    assert all(tensor.in_place for tensor in model.signature.caches)
    found = inspect_model(path)
    assert {site.head_size for site in found.sites} == {HEAD_SIZE}
    assert {site.settings["cache_format"] for site in found.sites} == {cache_format}
    assert found.cache_bytes_per_token == LAYERS * 2 * KV_HEADS * last
    assert (found.needs_library, found.has_fallback) == (("DeltaAttention",), False)
    with pytest.raises(
        DeltaLLMError, match="has no function body for DeltaAttention: run it with the operator library"
    ):
        DecoderModel(path, use_library=False)


@pytest.mark.parametrize("capacity", [11, 16, 40])
def test_bytes_in_use_are_read_from_the_header(capacity: int) -> None:
    """300 slabs' worth of tags by hand: 3 coded tokens in 2 rows, of 11 tokens."""
    sizes = PackedSizes("int8", 5, 1, 7)
    values = np.zeros((1, 2, capacity, sizes.bytes_per_token), np.uint8)
    for head, (tokens, rows) in enumerate([(3, 2), (3, 3)]):
        slab = values[0, head].reshape(-1)
        for slot, tag in enumerate([0xD801, tokens, 0, rows, 0]):
            place = slot * 12 + 10 if capacity < 16 else 16 * 8 + 32 + 2 * slot
            slab[place : place + 2] = tag & 255, tag >> 8
    assert packed_bytes_in_use(values, sizes, 11) == (10 + 11) * 12
    assert packed_bytes_in_use(values, sizes, 8) == 2 * 8 * 12
    assert packed_bytes_in_use(values, sizes, 0) == 0


def test_rows_of_an_impossible_size_are_refused(dense_path: Path, tmp_path: Path) -> None:
    import onnx  # noqa: PLC0415 - one test needs it

    path = rewrite(dense_path, tmp_path / "int8.onnx", COARSE.replace(cache_format="int8")).path
    model = onnx.load(path)
    next(v for v in model.graph.input if v.name == "past_key_values.1.key").type.tensor_type.shape.dim[3].dim_value = 13
    onnx.save(model, path)
    with pytest.raises(DeltaLLMError, match=r"past_key_values\.1\.key has rows of 13 bytes, which no int8 cache has"):
        DecoderModel(path)
