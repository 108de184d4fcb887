"""Rows in 8 and 4 bits are those of the packed caches and of their reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cache_definitions import STORED, codes

from bench.baselines.storage import STORAGES, groups_of_codes, int8_rows
from deltallm_onnx.reference.packed_blocks import dequantize_groups, quantize_groups
from deltallm_onnx.reference.packed_rows import round_row

#: Largest magnitudes of a row: normal, tiny, of which half-precision scales are subnormal, and none.
SIZES = (1.0, 300.0, 1e-3, 3e-5, 9e-6, 2e-6, 0.0)


@pytest.mark.parametrize("size", SIZES)
def test_8_bits_are_r8(size: float) -> None:
    rows = (size * np.random.default_rng(3).uniform(-1, 1, (7, 20))).astype(np.float32)
    found = int8_rows(torch.from_numpy(rows)).numpy()
    np.testing.assert_array_equal(found, np.stack([round_row(row).decoded() for row in rows]))
    # Rounding what was decoded changes nothing: a run of one token stays as it came in.
    np.testing.assert_array_equal(int8_rows(torch.from_numpy(found)).numpy(), found)


@pytest.mark.parametrize("size", SIZES)
def test_4_bits_are_the_sealed_blocks(size: float) -> None:
    groups = (size * np.random.default_rng(4).normal(0.3, 1, (5, 33))).astype(np.float32)
    expected = dequantize_groups(*quantize_groups(groups))
    np.testing.assert_array_equal(groups_of_codes(torch.from_numpy(groups), 1, 4).numpy(), expected)
    np.testing.assert_array_equal(groups_of_codes(torch.from_numpy(groups.T), 0, 4).numpy(), expected.T)
    np.testing.assert_array_equal(np.stack([codes(group, 4).decoded for group in groups]), expected)


@pytest.mark.parametrize("head_size", [20, 32, 64, 80])
@pytest.mark.parametrize("name", STORED)
def test_bytes_are_those_of_the_arrays(name: str, head_size: int) -> None:
    row = np.random.default_rng(5).normal(0, 1, head_size).astype(np.float32)
    stored = STORED[name](row)
    assert STORAGES[name].row_bytes(head_size) == stored.nbytes
    np.testing.assert_array_equal(STORAGES[name].stored(torch.from_numpy(row)).numpy(), stored.decoded)
