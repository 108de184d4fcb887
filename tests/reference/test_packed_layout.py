"""Sizes and places of the packed caches against docs/cache-format.md, written a second time as loops."""

from __future__ import annotations

import numpy as np
import pytest

from deltallm_onnx.packed_sizes import BLOCK_ROWS, TILE_ROWS, PackedSizes, bytes_per_token, padded_head_size
from deltallm_onnx.reference.packed_blocks import open_keys, open_values, seal_keys, seal_values
from deltallm_onnx.reference.packed_layout import PackedLayout
from deltallm_onnx.reference.packed_rows import Row
from deltallm_onnx.reference.packed_slab import Slab

FORMATS = ("int8", "int4")


def test_bytes_per_token_are_those_of_the_table() -> None:
    table = {64: (68, 36), 80: (84, 45), 128: (132, 70), 256: (260, 138)}
    for head_size, sizes in table.items():
        assert tuple(bytes_per_token(name, head_size) for name in FORMATS) == sizes


@pytest.mark.parametrize("cache_format", FORMATS)
def test_the_head_size_can_be_read_from_the_bytes(cache_format: str) -> None:
    found = [padded_head_size(cache_format, bytes_per_token(cache_format, D)) for D in range(1, 300)]
    assert found == [-(-D // 4) * 4 for D in range(1, 300)]
    assert padded_head_size(cache_format, 3) is None


def stored(row: Row, channel: int, *, is_key: bool) -> int:
    """The byte of one of 8 channels, of which 6 are real."""
    code = int(row.codes[channel]) if channel < 6 else 0
    return (code + 128 * is_key) % 256


def tile_bytes(rows: list[Row], *, is_key: bool) -> bytes:
    """Sixteen rows of 8 channels."""
    if is_key:
        order = [(r, 4 * group + c) for group in range(2) for r in range(16) for c in range(4)]
    else:
        order = [(4 * four + r, c) for four in range(4) for c in range(8) for r in range(4)]
    codes = bytes(stored(rows[r], c, is_key=is_key) for r, c in order)
    scales = np.array([row.scale for row in rows], "<f2").tobytes()
    return codes + scales + np.array([row.tag for row in rows], "<u2").tobytes()


@pytest.mark.parametrize("capacity", [3, 16, 37])
@pytest.mark.parametrize("is_key", [True, False])
def test_tiles_and_single_rows_lie_as_documented(is_key: bool, capacity: int) -> None:
    layout = PackedLayout("int8", 6, 2, 6)
    assert layout.padded_head_size == 8
    rng = np.random.default_rng(capacity)
    rows = [
        Row(rng.integers(-127, 128, 6).astype(np.int8), np.float16(rng.random()), int(tag))
        for tag in rng.integers(0, 65536, capacity)
    ]
    data = np.zeros((capacity, layout.bytes_per_token), np.uint8)
    slab = Slab(data, layout, is_key=is_key)
    for slot, row in enumerate(rows):
        slab.write(slot, row)

    whole = capacity // TILE_ROWS * TILE_ROWS
    tiles = [rows[first : first + TILE_ROWS] for first in range(0, whole, TILE_ROWS)]
    expected = b"".join(tile_bytes(tile, is_key=is_key) for tile in tiles)
    for row in rows[whole:]:
        expected += bytes(stored(row, c, is_key=is_key) for c in range(8))
        expected += np.array(row.scale, "<f2").tobytes() + np.array(row.tag, "<u2").tobytes()
    assert data.tobytes() == expected
    for slot, row in enumerate(rows):
        read = slab.read(slot)
        np.testing.assert_array_equal(read.codes, row.codes)
        assert (read.scale, read.tag) == (row.scale, row.tag)


@pytest.mark.parametrize("head_size", [3, 20, 65])
def test_blocks_lie_as_documented(head_size: int) -> None:
    layout = PackedLayout("int4", head_size, 2, 6)
    padded = layout.padded_head_size
    rng = np.random.default_rng(head_size)
    x = rng.normal(0, 1, (BLOCK_ROWS, head_size)).astype(np.float32)
    tags = rng.integers(0, 65536, BLOCK_ROWS).astype(np.uint16)
    keys, values = seal_keys(x, tags, layout), seal_values(x, layout)
    assert len(keys) == len(values) == layout.block_bytes == 128 * layout.bytes_per_token
    code_bytes = 64 * padded
    key_scale, key_zero = keys[code_bytes:].view("<f2")[:padded], keys[code_bytes:].view("<f2")[padded : 2 * padded]
    value_scale, value_zero = values[code_bytes:].view("<f2")[:128], values[code_bytes:].view("<f2")[128:256]
    opened, read_tags = open_keys(keys, layout)
    opened_values = open_values(values, layout)
    for t in range(BLOCK_ROWS):
        for channel in range(head_size):
            z, in_group = divmod(t, 32)
            byte = keys[((z * (padded // 4) + channel // 4) * 16 + in_group % 16) * 4 + channel % 4]
            code = np.float32(byte >> 4 if in_group >= 16 else byte & 15)
            decoded = np.float32(key_zero[channel]) + code * np.float32(key_scale[channel])
            assert decoded == opened[t, channel]
            assert abs(decoded - x[t, channel]) <= 0.51 * float(key_scale[channel])
            i, in_group = divmod(t, 8)
            byte = values[(i * padded + channel) * 4 + in_group % 4]
            code = np.float32(byte >> 4 if in_group >= 4 else byte & 15)
            decoded = np.float32(value_zero[t]) + code * np.float32(value_scale[t])
            assert decoded == opened_values[t, channel]
            assert abs(decoded - x[t, channel]) <= 0.51 * float(value_scale[t])
    np.testing.assert_array_equal(keys[code_bytes + 4 * padded :][:256].view("<u2"), tags)
    np.testing.assert_array_equal(read_tags, tags)


def test_a_group_that_is_not_finite_decodes_to_nan_and_spoils_no_other() -> None:
    layout = PackedLayout("int4", 5, 2, 6)
    x = np.random.default_rng(0).normal(0, 1, (BLOCK_ROWS, 5)).astype(np.float32)
    x[7, 2], x[8, 3], x[9, 4] = np.nan, np.inf, 1e30
    keys, _ = open_keys(seal_keys(x, np.zeros(BLOCK_ROWS, np.uint16), layout), layout)
    np.testing.assert_array_equal(np.isnan(keys).all(axis=0), [False, False, True, True, True])
    values = open_values(seal_values(x, layout), layout)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(values).any(axis=1)), [7, 8, 9])


def test_a_constant_group_is_kept_to_half_precision() -> None:
    layout = PackedLayout("int4", 5, 2, 6)
    x = np.full((BLOCK_ROWS, 5), 0.1, np.float32)
    np.testing.assert_allclose(open_values(seal_values(x, layout), layout), x, rtol=2.0**-11)


@pytest.mark.parametrize("cache_format", FORMATS)
def test_every_cache_of_t_tokens_fits_the_rows_needed(cache_format: str) -> None:
    """Where nothing merges, which takes the most room."""
    sizes = PackedSizes(cache_format, 20, 3, 10)
    before = 0
    for tokens in range(1, 700):
        rows = sizes.rows_needed(tokens)
        assert rows >= before
        before = rows
        coded = max(tokens - sizes.exact, 0)
        blocks = sizes.sealed_blocks(coded)
        assert min(tokens, sizes.exact) + coded - blocks * BLOCK_ROWS <= sizes.rows_in_area(rows)
        assert blocks <= sizes.blocks_that_fit(rows)
        # A buffer that has reached its whole size keeps its first bytes when it grows.
        if rows >= sizes.smallest_whole_capacity:
            assert sizes.rows_in_area(rows + 64) in (sizes.rows_in_area(rows), rows + 64)
    assert sizes.rows_needed(10**6) <= 1.001 * 10**6 + sizes.smallest_whole_capacity + 256
