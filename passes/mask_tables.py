"""Tables of truth values stored with a model: the triangle or band that old exports cut their masks from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.mask_domain import AtLeastZero, Condition, varying

#: A larger table is none of positions (8192 by 8192).
MAX_ENTRIES = 2**26


def table(entries: NDArray[np.bool_]) -> Condition | None:
    """What a table [1, …, rows, columns] says, if that is j ≤ i + a, with or without j > i − W.

    Args:
        entries: neither all true nor all false.

    Returns:
        The condition; None for any other table.
    """
    if entries.ndim < 2 or set(entries.shape[:-2]) - {1}:
        return None
    matrix = entries.reshape(entries.shape[-2:])
    rows, columns = len(matrix), len(matrix[0])
    first_row, last_row = np.flatnonzero(matrix[0]), np.flatnonzero(matrix[-1])
    if not first_row.size or not last_row.size:
        return None
    ahead, start = int(first_row[-1]), int(last_row[0])
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    seen = j <= i + ahead
    lengths = ((-2, Affine(rows)), (-1, Affine(columns)))
    steps = (varying((axis, step, n) for (axis, n), step in zip(lengths, signs, strict=True)) for signs in _SIGNS)
    lower, upper = steps
    terms = {AtLeastZero(Affine(ahead), lower)}
    if start:
        window = rows - start  # of the last row, i = rows − 1
        seen &= j > i - window
        terms.add(AtLeastZero(Affine(window - 1), upper))
    return Condition(entries.ndim, frozenset(terms)) if np.array_equal(seen, matrix) else None


#: Of i and j in i − j + a ≥ 0 and j − i + W − 1 ≥ 0.
_SIGNS = ((1, -1), (-1, 1))
