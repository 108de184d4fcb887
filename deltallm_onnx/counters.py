"""Counters: what the op's raw counts say, by the names of docs/spec.md section 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError

#: Columns of the op's `statistics` output, int64 [Hkv, 8] per layer and call.
COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Counters:
    """Sums of raw counts over calls, layers, KV heads and the batch. Add the counters of later calls on the right.

    Attributes:
        delta_total: elements (element granularity) or rows (row) coded.
        delta_zero: those of them that equal the row before.
        qk_macs_dense: QK multiply-accumulates of causal dense attention.
        qk_macs_skipped: those of them that a held key spares.
        pv_macs_dense: PV multiply-accumulates of causal dense attention.
        pv_macs_skipped: those of them that a run or v_skip spares.
        kv_bytes: bytes in use in all caches after the latest call.
        cached_tokens: real tokens in the cache after the latest call, over the batch.
        layers: layers per call.
        decode_bytes_read: bytes of keys and values that the decode calls (S = 1) had to read.
        decoded_tokens: tokens of those calls.
    """

    delta_total: int = 0
    delta_zero: int = 0
    qk_macs_dense: int = 0
    qk_macs_skipped: int = 0
    pv_macs_dense: int = 0
    pv_macs_skipped: int = 0
    kv_bytes: int = 0
    cached_tokens: int = 0
    layers: int = 0
    decode_bytes_read: int = 0
    decoded_tokens: int = 0

    @classmethod
    def from_statistics(
        cls, statistics: Sequence[npt.NDArray[Any]], *, cached_tokens: int, decoded_tokens: int = 0
    ) -> Counters:
        """The counters of one call.

        Args:
            statistics: one int64 [Hkv, 8] array per layer, as the op returned them.
            cached_tokens: real tokens in the cache after the call, summed over the batch.
            decoded_tokens: new tokens of the call if it was a decode step (S = 1: one per batch row), else 0.

        Raises:
            DeltaLLMError: for an array of another type or shape, naming the layer.
        """
        total = np.zeros(COLUMNS, np.int64)
        for layer, counts in enumerate(statistics):
            if counts.ndim != 2 or counts.shape[1] != COLUMNS or counts.dtype != np.int64:
                raise DeltaLLMError(
                    f"The statistics of layer {layer} are {counts.dtype} {list(counts.shape)}: "
                    f"give int64 [kv heads, {COLUMNS}]."
                )
            total += counts.sum(axis=0)
        delta_total, delta_zero, qk_dense, qk_skipped, pv_dense, pv_skipped, kv_bytes, bytes_read = map(int, total)
        return cls(
            delta_total=delta_total,
            delta_zero=delta_zero,
            qk_macs_dense=qk_dense,
            qk_macs_skipped=qk_skipped,
            pv_macs_dense=pv_dense,
            pv_macs_skipped=pv_skipped,
            kv_bytes=kv_bytes,
            cached_tokens=cached_tokens,
            layers=len(statistics),
            decode_bytes_read=bytes_read if decoded_tokens else 0,
            decoded_tokens=decoded_tokens,
        )

    def __add__(self, later: Counters) -> Counters:
        """Sums; what describes the cache is taken from the later call. Empty counters change nothing."""
        state = later if later.layers else self
        return Counters(
            delta_total=self.delta_total + later.delta_total,
            delta_zero=self.delta_zero + later.delta_zero,
            qk_macs_dense=self.qk_macs_dense + later.qk_macs_dense,
            qk_macs_skipped=self.qk_macs_skipped + later.qk_macs_skipped,
            pv_macs_dense=self.pv_macs_dense + later.pv_macs_dense,
            pv_macs_skipped=self.pv_macs_skipped + later.pv_macs_skipped,
            kv_bytes=state.kv_bytes,
            cached_tokens=state.cached_tokens,
            layers=state.layers,
            decode_bytes_read=self.decode_bytes_read + later.decode_bytes_read,
            decoded_tokens=self.decoded_tokens + later.decoded_tokens,
        )

    @property
    def delta_sparsity(self) -> float:
        """Zeros of Δ / elements of Δ (element), held rows / rows (row), over all that was coded; 0 if nothing was."""
        return _ratio(self.delta_zero, self.delta_total)

    @property
    def qk_mac_sparsity(self) -> float:
        """Share of QK multiply-accumulates not done, against causal dense attention; window and sinks are dense."""
        return _ratio(self.qk_macs_skipped, self.qk_macs_dense)

    @property
    def attn_mac_sparsity(self) -> float:
        """The same over QK and PV together."""
        return _ratio(self.qk_macs_skipped + self.pv_macs_skipped, self.qk_macs_dense + self.pv_macs_dense)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes in use per cached token and layer, all KV heads together, after the latest call."""
        return _ratio(self.kv_bytes, self.cached_tokens * self.layers)

    @property
    def kv_bytes_read(self) -> float:
        """Bytes of keys and values read per decoded token, all layers together."""
        return _ratio(self.decode_bytes_read, self.decoded_tokens)

    def to_dict(self) -> dict[str, float]:
        """The named counters, JSON-ready."""
        return {
            "delta_sparsity": self.delta_sparsity,
            "qk_mac_sparsity": self.qk_mac_sparsity,
            "attn_mac_sparsity": self.attn_mac_sparsity,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_bytes_read": self.kv_bytes_read,
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
