"""Zeroed arrays for large caches, in memory that the kernel may back with huge pages.

A decode step reads the whole cache once; with 4 KiB pages, address translation costs a good part of that time.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Size and alignment of a huge page on x86-64 and on aarch64 with 4 KiB base pages.
HUGE_PAGE_BYTES = 2 << 20


def zeros(shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """As `numpy.zeros`; an array of at least one huge page begins at a huge page boundary, where the system has them.

    Args:
        shape: of the array.
        dtype: a plain numeric type.
    """
    element = np.dtype(dtype)
    count = math.prod(shape)
    size = count * element.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or size < HUGE_PAGE_BYTES:
        return np.zeros(shape, element)
    # Anonymous memory is zero, and takes no room before it is written: the page too much costs nothing.
    region = mmap.mmap(-1, _round_up(size) + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages: ordinary ones do
        region.madvise(advice)
    address = np.frombuffer(region, np.uint8, 1).__array_interface__["data"][0]
    array = np.frombuffer(region, element, count, offset=_round_up(address) - address)
    # The array keeps the region alive.
    return array.reshape(shape)


def _round_up(n: int) -> int:
    return -(-n // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
