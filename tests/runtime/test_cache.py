from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, cache_spec
from deltallm_onnx.runtime.cache import CAPACITY_ROWS, GROWTH, GROWTH_TOKENS, grown_tokens

# Float32 sums of HIDDEN = 40 terms of size up to 100, in another order.
TOLERANCE = 2e-5


def test_cache_spec_gives_type_and_row_size() -> None:
    assert cache_spec("float32", 24) == (np.dtype(np.float32), 24)
    assert cache_spec("float16", 24) == (np.dtype(np.float16), 24)


def test_cache_spec_refuses_an_unknown_format() -> None:
    with pytest.raises(DeltaLLMError, match=r"'int3'.*float32, float16"):
        cache_spec("int3", 24)


@pytest.mark.parametrize("total", [1, 31, 32, 33, 1000, 4097])
def test_growth_leaves_room_and_little_of_it(total: int) -> None:
    tokens = grown_tokens(total, None)
    assert total < tokens <= total * GROWTH + GROWTH_TOKENS
    assert grown_tokens(total, total + 3) == min(tokens, total + 3)
    assert grown_tokens(total, 1) == total, "a limit that was wrong must not make the buffer too small"


def test_in_place_and_fed_back_caches_hold_the_same_rows(dense_path: Path, in_place_path: Path) -> None:
    """The peer of the in-place path is the copying one, through prefill and growth."""
    dense, in_place = DecoderModel(dense_path), DecoderModel(in_place_path)
    caches = dense.new_cache(batch=2), in_place.new_cache(batch=2)
    tokens = np.random.default_rng(11).integers(0, VOCABULARY, (2, 90))
    grown = set()
    at = 0
    for new_tokens in (17, *[1] * 73):
        chunk = tokens[:, at : at + new_tokens]
        at += new_tokens
        (expected, _), (found, _) = dense.step(chunk, caches[0]), in_place.step(chunk, caches[1])
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        grown.add(caches[1].bytes_allocated)
    assert caches[0].length == caches[1].length == at == 90
    assert len(grown) >= 3, "the buffer was to grow at least twice on the way"
    for layer in range(LAYERS):
        for role in ("key", "value"):
            name = f"past_key_values.{layer}.{role}"
            rows = caches[1].rows(name)
            assert rows.shape == (2, KV_HEADS, 90, HEAD_SIZE)
            np.testing.assert_allclose(rows, caches[0].rows(name), rtol=0, atol=TOLERANCE)


def test_in_place_buffers_stay_where_they_are_between_growths(in_place_path: Path) -> None:
    model = DecoderModel(in_place_path)
    cache = model.new_cache(limit=12)
    model.step(np.zeros((1, 5), np.int64), cache)
    tensor = model.signature.caches[0]
    before = cache._values[tensor.past].data_ptr()
    for _ in range(7):
        model.step(np.zeros((1, 1), np.int64), cache)
    assert cache._values[tensor.past].data_ptr() == before
    assert (cache.length, cache.capacity(tensor)) == (12, CAPACITY_ROWS)


def test_bytes_are_those_of_the_rows(dense_path: Path, in_place_path: Path) -> None:
    row_bytes = LAYERS * 2 * KV_HEADS * HEAD_SIZE * 4
    for path in (dense_path, in_place_path):
        model = DecoderModel(path)
        cache = model.new_cache(batch=3)
        assert cache.bytes_in_use == cache.bytes_allocated == 0
        model.step(np.zeros((3, 37), np.int64), cache)
        assert cache.bytes_in_use == 3 * 37 * row_bytes
        assert cache.bytes_in_use <= cache.bytes_allocated <= 3 * row_bytes * (37 * GROWTH + GROWTH_TOKENS)


def test_chunks_and_one_shot_give_the_same_logits(in_place_path: Path) -> None:
    model = DecoderModel(in_place_path)
    tokens = np.random.default_rng(12).integers(0, VOCABULARY, (1, 61))
    whole, _ = model.step(tokens, model.new_cache())
    cache = model.new_cache()
    parts = [model.step(part, cache)[0] for part in np.split(tokens, [1, 8, 40, 41], axis=1)]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_copy_goes_its_own_way(dense_path: Path, in_place_path: Path, *, in_place: bool) -> None:
    model = DecoderModel(in_place_path if in_place else dense_path)
    tokens = np.random.default_rng(17).integers(0, VOCABULARY, (2, 58))
    cache = model.new_cache(batch=2)
    model.step(tokens[:, :23], cache)
    kept = {tensor.past: cache.rows(tensor.past) for tensor in model.signature.caches}
    twin = cache.copy()
    assert (twin.length, twin.bytes_allocated) == (23, cache.bytes_allocated)
    for at in range(57, 22, -1):  # another text, far enough for the copy to grow
        model.step(tokens[:, at : at + 1], twin)
    for past, rows in kept.items():
        np.testing.assert_array_equal(cache.rows(past), rows)
        np.testing.assert_array_equal(twin.rows(past)[:, :, :23], rows)
    assert (cache.length, twin.length) == (23, 58)
    found = [model.step(tokens[:, at : at + 1], cache)[0] for at in range(23, 58)]
    expected, _ = model.step(tokens, model.new_cache(batch=2))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected[:, 23:], rtol=0, atol=TOLERANCE)
