"""Zeroed arrays on huge pages: the same as numpy's in every respect but where they begin."""

from __future__ import annotations

import gc
import itertools
import mmap

import numpy as np
import onnxruntime as ort
import pytest

from deltallm_onnx.runtime.huge_pages import HUGE_PAGE_BYTES, zeros


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (2, 3, 5, 7), (1, 3, 700001, 3), (2, 5, 40960, 17)], ids=str)
def test_arrays_are_zero_writable_and_contiguous(shape: tuple[int, ...], dtype: np.dtype) -> None:
    array = zeros(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert array.flags["C_CONTIGUOUS"]
    assert not array.any()
    array[...] = 3
    assert (array == 3).all()


def test_large_arrays_begin_at_a_huge_page_and_small_ones_cost_none() -> None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        assert zeros((HUGE_PAGE_BYTES,), np.uint8).base is None
        return
    large = [zeros((HUGE_PAGE_BYTES + odd,), np.uint8) for odd in (0, 1, 4097)]
    assert all(array.ctypes.data % HUGE_PAGE_BYTES == 0 for array in large)
    spans = sorted((array.ctypes.data, array.ctypes.data + array.nbytes) for array in large)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert zeros((HUGE_PAGE_BYTES - 1,), np.uint8).base is None


def test_the_memory_lives_as_long_as_a_view_or_an_ort_value() -> None:
    value = ort.OrtValue.ortvalue_from_numpy(zeros((HUGE_PAGE_BYTES // 4, 3), np.float32))
    value.numpy()[5, 1] = 7
    view = zeros((HUGE_PAGE_BYTES,), np.uint8)[5:9]
    view[:] = 8
    gc.collect()
    other = zeros((4 * HUGE_PAGE_BYTES,), np.uint8)
    other[:] = 9
    assert value.numpy()[5, 1] == 7
    assert view.tolist() == [8] * 4
