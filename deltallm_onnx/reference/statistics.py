"""Raw counts of one call: docs/spec.md section 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: Columns of the op's `statistics` output, int64 [Hkv, 8].
STATISTICS_COLUMNS = (
    "delta_total",
    "delta_zero",
    "qk_macs_dense",
    "qk_macs_skipped",
    "pv_macs_dense",
    "pv_macs_skipped",
    "kv_bytes",
    "kv_bytes_read",
)


def count_batch_row(
    present_key: Array,
    visible: Array,
    held: Array,
    left_out: Array,
    *,
    start: int,
    coded: tuple[int, int],
    granularity: str,
) -> Array:
    """The counts that one row of the batch adds.

    Args:
        present_key: the cache after the call, in its own type, [Hkv, C, D] with C ≥ L_b.
        visible: bool [S, L_b], keys each query sees.
        held: bool [S, L_b], keys it would read as k̂.
        left_out: bool [Hq, S, at least L_b], values left out by v_skip.
        start: first real token.
        coded: first and one past the last row coded in this call.
        granularity: "element" or "row".

    Returns:
        int64 [Hkv, 8].
    """
    Hkv, _, D = present_key.shape
    length = visible.shape[1]
    G = left_out.shape[0] // Hkv
    zeros = _zeros_of_delta(present_key[:, :length], start)  # [Hkv, L_b, D]
    repeated = np.asarray(zeros.all(axis=-1))
    row_is_held = repeated if granularity == "row" else np.zeros_like(repeated)
    read_as_held = visible & held
    seen = int(visible.any(axis=0).sum())
    row_bytes = 2 * D * present_key.dtype.itemsize
    counts = np.zeros((Hkv, len(STATISTICS_COLUMNS)), np.int64)
    for kv in range(Hkv):
        new = slice(*coded)
        zeros_per_row = D * row_is_held[kv] if granularity == "row" else zeros[kv].sum(axis=-1)
        in_run = read_as_held & row_is_held[kv]
        # A value inside a run is counted once, whether or not v_skip would have left it out too.
        skipped_values = left_out[kv * G : (kv + 1) * G, :, :length] & ~in_run
        counts[kv] = (
            zeros[kv, new].size if granularity == "element" else repeated[kv, new].size,
            zeros[kv, new].sum() if granularity == "element" else repeated[kv, new].sum(),
            G * D * visible.sum(),
            G * (read_as_held * zeros_per_row).sum(),
            G * D * visible.sum(),
            G * D * in_run.sum() + D * skipped_values.sum(),
            (length - start) * row_bytes,
            seen * row_bytes,
        )
    return counts


def _zeros_of_delta(rows: Array, start: int) -> Array:
    """Channels equal to the row before, bool [Hkv, L_b, D]; the first real row has none before it."""
    zeros = np.zeros(rows.shape, bool)
    zeros[:, start + 1 :] = rows[:, start + 1 :] == rows[:, start:-1]
    return zeros
