"""ai.deltallm::DeltaAttention over packed caches: bytes in, bytes out (docs/cache-format.md, "What a call does")."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference.lengths import RowLengths
from deltallm_onnx.reference.packed_attention import Scoring, attend_rows, joined, seen_rows
from deltallm_onnx.reference.packed_cache import CacheRows, CodingRules, PackedCache
from deltallm_onnx.reference.packed_layout import PackedLayout
from deltallm_onnx.reference.statistics import STATISTICS_COLUMNS

Array = npt.NDArray[Any]

__all__ = ["CodingRules", "PackedCache", "PackedCall", "PackedLayout"]


@dataclasses.dataclass(frozen=True)
class PackedCall:
    """One call of the operator with a packed cache, its inputs checked and rotated.

    Attributes:
        query: float32 [B, Hq, S, D].
        key: float32 [B, Hkv, S, D].
        value: float32 [B, Hkv, S, D].
        past_key: uint8 [B, Hkv, capacity, bytes_per_token], or None.
        past_value: the same.
        rows: where the rows of the batch begin and end.
        layout: of the slabs.
        rules: of every KV head.
        scale: multiplies q·k.
        softcap: 0 = none.
        local_window_size: −1 = none.
        v_skip: ε.
        prefill: "exact" or "delta".
        attention_bias: float [B, Hq, S, total] or None.
        head_sink: float [Hq] or None.
    """

    query: Array
    key: Array
    value: Array
    past_key: Array | None
    past_value: Array | None
    rows: RowLengths
    layout: PackedLayout
    rules: list[CodingRules]
    scale: float
    softcap: float
    local_window_size: int
    v_skip: float
    prefill: str
    attention_bias: Array | None
    head_sink: Array | None

    def run(self) -> tuple[Array, Array, Array, Array]:
        """Append, code, attend and count.

        Returns:
            output float64 [B, Hq, S, D]; present_key and present_value uint8; statistics int64 [Hkv, 8].

        Raises:
            DeltaLLMError: for a past whose header cannot be right, and a rewind that cannot be done.
        """
        B, Hq, S, D = self.query.shape
        Hkv = self.key.shape[1]
        G = Hq // Hkv
        capacity = 0 if self.past_key is None else self.past_key.shape[2]
        capacity = max(capacity, self.rows.total, self.layout.rows_needed(self.rows.total))
        key, value = (np.zeros((B, Hkv, capacity, self.layout.bytes_per_token), np.uint8) for _ in range(2))
        output = np.zeros((B, Hq, S, D))
        statistics = np.zeros((Hkv, len(STATISTICS_COLUMNS)), np.int64)
        for b in range(B):
            for kv in range(Hkv):
                cache = self._open(b, kv, key[b, kv], value[b, kv])
                heads = slice(kv * G, (kv + 1) * G)
                output[b, heads], counts = self._attend(cache, b, kv, heads)
                statistics[kv] += counts
        return output, key, value, statistics

    def _open(self, b: int, kv: int, key: Array, value: Array) -> PackedCache:
        """The past in the slabs of the present."""
        past, start, length = (int(x[b]) for x in (self.rows.past, self.rows.start, self.rows.length))
        tokens = max(min(past, length) - start, 0)
        if tokens == 0 or self.past_key is None or self.past_value is None:
            return PackedCache(key, value, self.layout, self.rules[kv], 0)
        capacity, needed = self.past_key.shape[2], self.layout.rows_needed(tokens)
        if capacity < needed:
            raise DeltaLLMError(
                f"Batch row {b} has {tokens} past tokens, which need {needed} rows, but past_key has {capacity}: give "
                "the present of a call of this model."
            )
        slabs = self.past_key[b, kv].copy(), self.past_value[b, kv].copy()
        try:
            past_cache = PackedCache(*slabs, self.layout, self.rules[kv], tokens)
        except DeltaLLMError as error:
            raise DeltaLLMError(f"Batch row {b}, KV head {kv}: {error}") from error
        return past_cache.copied(key, value)

    def _attend(self, cache: PackedCache, b: int, kv: int, heads: slice) -> tuple[Array, Array]:
        """Output float64 [G, S, D] and counts int64 [8] of one KV head."""
        past, start, length = (int(x[b]) for x in (self.rows.past, self.rows.start, self.rows.length))
        query, S, D = self.query[b, heads], self.query.shape[2], self.query.shape[3]
        output, counts = np.zeros(query.shape), np.zeros(len(STATISTICS_COLUMNS), np.int64)
        seen = np.zeros(max(length - start, 0), bool)
        scoring = Scoring(
            self.scale, self.softcap, self.v_skip, None if self.head_sink is None else self.head_sink[heads]
        )
        reads_past = self.prefill == "exact" and S > 1
        real = [s for s in range(S) if start <= past + s < length]
        before = cache.rows()
        if reads_past:
            new = (self.key[b, kv, real], self.value[b, kv, real])
            before = joined(before, *new, first_token=cache.tokens)
        for s in range(S):
            token = past + s - start
            if s in real:
                cache.append(self.key[b, kv, s], self.value[b, kv, s])
            if token < 0:
                continue
            rows = seen_rows(before if reads_past else cache.rows(), token, self.local_window_size)
            bias = self._bias(b, heads, s, rows)
            output[:, s], left_out = attend_rows(query[:, s], rows, scoring, bias)
            counts += self._pair_counts(rows, left_out, D)
            first = max(token - self.local_window_size + 1, 0) if self.local_window_size >= 0 else 0
            seen[first : token + 1] = True
        counts[:2] = cache.counts[0] * (D if self._by_element else 1), cache.counts[1]
        counts[6:] = cache.bytes_in_use(seen)
        return output, counts

    @property
    def _by_element(self) -> bool:
        return self.rules[0].granularity == "element"

    def _bias(self, b: int, heads: slice, s: int, rows: CacheRows) -> Array | None:
        if self.attention_bias is None:
            return None
        # Runs do not merge where there is a bias, so every row is one token.
        columns = rows.first_token + int(self.rows.start[b])
        return np.asarray(self.attention_bias[b, heads, s][:, columns])

    def _pair_counts(self, rows: CacheRows, left_out: Array, D: int) -> Array:
        """The counts that one query adds, int64 [8]; the rows are those it sees."""
        G = len(left_out)
        counts = np.zeros(len(STATISTICS_COLUMNS), np.int64)
        counts[2] = counts[4] = G * D * rows.tokens.sum()
        spared = int(rows.spared[rows.coded].sum())
        counts[3] = G * spared * (1 if self._by_element else D)
        held = np.zeros_like(rows.tokens) if self._by_element else rows.spared
        counts[5] = G * D * int(held.sum()) + D * int((left_out * (rows.tokens - held)).sum())
        return counts
