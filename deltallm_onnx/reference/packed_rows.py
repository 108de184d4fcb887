"""R8: a key or value row as signed bytes with one half-precision scale (docs/cache-format.md, "Rounding")."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: The scale of a row that is not finite.
NAN_SCALE = np.array(0x7E00, np.uint16).view(np.float16)[()]

_LARGEST_CODE = np.float32(127)
_CLAMPED_CODE = np.float32(127.5)


@dataclasses.dataclass(frozen=True)
class Row:
    """One row as it is stored.

    Attributes:
        codes: int8 [D].
        scale: float16; NaN for a row that is not finite, whose codes are 0 then.
        tag: what docs/cache-format.md gives rows of its kind, 0 to 65535.
    """

    codes: Array
    scale: Any
    tag: int = 0

    def decoded(self) -> Array:
        """The products code · scale, float32 [D]."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.codes.astype(np.float32) * np.float32(self.scale))

    def tagged(self, tag: int) -> Row:
        """The same row with another tag."""
        return dataclasses.replace(self, tag=tag)


def round_row(x: Array) -> Row:
    """R8 of one row, tag 0. Every operation is a float32 operation of its own.

    Args:
        x: float32 [D].
    """
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        return Row(np.zeros(x.shape, np.int8), NAN_SCALE)
    largest = np.abs(x).max()
    with np.errstate(over="ignore"):
        scale: Any = np.float16(largest / _LARGEST_CODE)
        # Behind ±127.5 steps a clamped code would be more than half a step off; only subnormal scales are so coarse.
        if np.float32(scale) < largest / _CLAMPED_CODE:
            scale = np.nextafter(scale, np.float16(np.inf))
    if np.isinf(scale):
        return Row(np.zeros(x.shape, np.int8), NAN_SCALE)
    if scale == 0:
        return Row(np.zeros(x.shape, np.int8), scale)
    codes = np.clip(np.rint(x / np.float32(scale)), -_LARGEST_CODE, _LARGEST_CODE)
    return Row(codes.astype(np.int8), scale)
