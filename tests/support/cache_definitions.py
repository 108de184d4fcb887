"""What bench/baselines compares, written down once more: one KV head, one token after the other, rows that are held.

A cache is given a token's queries [G, D], times the scale, and its key and value [D], and answers with the output
[G, D]. What it holds are arrays of the types that are stored, so that its bytes are theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from deltallm_onnx.reference.packed import CodingRules, PackedCache, PackedLayout
from deltallm_onnx.reference.packed_attention import Scoring, attend_rows
from deltallm_onnx.reference.packed_rows import round_row

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Stored:
    """A row, or a group of rows: the arrays that are kept, and what is read back."""

    arrays: tuple[Array, ...]
    decoded: Array

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def float32(x: Array) -> Stored:
    return Stored((x.astype(np.float32),), x.astype(np.float32))


def float16(x: Array) -> Stored:
    half = x.astype(np.float16)
    return Stored((half,), half.astype(np.float32))


def int8(x: Array) -> Stored:
    row = round_row(x)
    return Stored((row.codes, np.array(row.scale)), row.decoded())


def codes(x: Array, bits: int) -> Stored:
    """One group of numbers [n] between its smallest and largest."""
    levels = np.float32(2**bits - 1)
    zero = np.float16(x.min())
    scale = np.float16((x.max() - np.float32(zero)) / levels)
    number = np.zeros(x.shape) if scale == 0 else np.rint((x - np.float32(zero)) / np.float32(scale))
    number = np.clip(number, 0, levels).astype(np.uint8)
    packed = np.zeros(-(-x.size * bits // 8), np.uint8)
    decoded = np.float32(zero) + number.astype(np.float32) * np.float32(scale)
    return Stored((packed, np.array(scale), np.array(zero)), decoded)


def grouped(x: Array, bits: int, size: int) -> Stored:
    """Groups of `size` channels of a row."""
    parts = [codes(x[at : at + size], bits) for at in range(0, len(x), size)]
    arrays = tuple(array for part in parts for array in part.arrays)
    return Stored(arrays, np.concatenate([part.decoded for part in parts]))


def int4(x: Array) -> Stored:
    return grouped(x, 4, 32)


STORED = {"float32": float32, "float16": float16, "int8": int8, "int4": int4}


@dataclasses.dataclass(frozen=True)
class Step:
    """Output [G, D] of a token's queries, bytes held after the token, bytes read by its queries."""

    output: Array
    kept: int
    read: int


class Cache(Protocol):
    def step(self, query: Array, key: Array, value: Array) -> Step: ...


def weights(query: Array, keys: Sequence[Array]) -> Array:
    """Of every query [G] over the keys, float64 [G, n]."""
    products = query.astype(np.float64) @ np.stack(keys).astype(np.float64).T
    shifted = np.exp(products - products.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def attended(query: Array, rows: Sequence[tuple[Stored, Stored]]) -> Array:
    mass = weights(query, [key.decoded for key, _ in rows])
    return mass @ np.stack([value.decoded for _, value in rows]).astype(np.float64)


def nbytes(rows: Sequence[tuple[Stored, Stored]]) -> int:
    return sum(key.nbytes + value.nbytes for key, value in rows)


class StreamingCache:
    """The first `sinks` rows and the newest `window`; with an endless window: everything."""

    def __init__(self, sinks: int, window: int, store: Callable[[Array], Stored]) -> None:
        self.sinks, self.window, self.store = sinks, window, store
        self.first: list[tuple[Stored, Stored]] = []
        self.newest: list[tuple[Stored, Stored]] = []

    def step(self, query: Array, key: Array, value: Array) -> Step:
        held = self.first if len(self.first) < self.sinks else self.newest
        held.append((self.store(key), self.store(value)))
        if len(self.newest) > self.window:
            self.newest.pop(0)
        rows = self.first + self.newest
        return Step(attended(query, rows), nbytes(rows), nbytes(rows))


@dataclasses.dataclass(eq=False)
class _Heavy:
    row: tuple[Stored, Stored]
    mass: Array  # float32, one number


class HeavyHitterCache:
    def __init__(self, budget: int, recent: int, decay: float, store: Callable[[Array], Stored]) -> None:
        self.budget, self.recent, self.decay, self.store = budget, recent, decay, store
        self.held: list[_Heavy] = []

    def _nbytes(self) -> int:
        return nbytes([held.row for held in self.held]) + sum(held.mass.nbytes for held in self.held)

    def step(self, query: Array, key: Array, value: Array) -> Step:
        self.held.append(_Heavy((self.store(key), self.store(value)), np.zeros(1, np.float32)))
        rows = [held.row for held in self.held]
        mass = weights(query, [key.decoded for key, _ in rows]).sum(axis=0)
        for held, more in zip(self.held, mass, strict=True):
            held.mass = (self.decay * held.mass + more).astype(np.float32)
        read = self._nbytes()
        if len(self.held) > self.budget:
            # The newest are the last of the list, which is in the order of the text.
            old = self.held[: len(self.held) - self.recent]
            self.held.remove(min(old, key=lambda held: float(held.mass[0])))
        return Step(attended(query, rows), self._nbytes(), read)


class QuestCache:
    """Pages of rows; full ones have bounds, if the layer chooses."""

    def __init__(self, pages: int, page: int, store: Callable[[Array], Stored], *, shared: bool, dense: bool) -> None:
        self.pages, self.page, self.store, self.shared, self.dense = pages, page, store, shared, dense
        self.full: list[list[tuple[Stored, Stored]]] = []
        self.bounds: list[tuple[Stored, Stored]] = []
        self.filling: list[tuple[Stored, Stored]] = []

    def step(self, query: Array, key: Array, value: Array) -> Step:
        self.filling.append((self.store(key), self.store(value)))
        chosen = self._chosen(query)
        outputs = [
            attended(one[None], [row for page in sorted(pages) for row in self.full[page]] + self.filling)
            for one, pages in zip(query, chosen, strict=True)
        ]
        read = nbytes(self.filling) + sum(nbytes(self.full[page]) for page in set().union(*chosen))
        if not self.dense and len(self.full) >= self.pages:
            read += nbytes(self.bounds)
        if len(self.filling) == self.page:
            keys = np.stack([key.decoded for key, _ in self.filling])
            self.full.append(self.filling)
            self.bounds.append((float16(keys.min(axis=0)), float16(keys.max(axis=0))))
            self.filling = []
        kept = sum(map(nbytes, [*self.full, self.filling])) + (0 if self.dense else nbytes(self.bounds))
        return Step(np.concatenate(outputs), kept, read)

    def _chosen(self, query: Array) -> list[set[int]]:
        everything = set(range(len(self.full)))
        if self.dense or len(self.full) < self.pages:
            return [everything] * len(query)
        promised = np.array(
            [[np.maximum(q * low.decoded, q * high.decoded).sum() for low, high in self.bounds] for q in query]
        )
        if self.shared:
            promised[:] = promised.sum(axis=0)
        return [set(np.argsort(-row, kind="stable")[: self.pages - 1].tolist()) for row in promised]


class KiviCache:
    """Keys wait until `residual` of them are there, values until `residual` newer ones are."""

    def __init__(self, bits: int, group: int, residual: int) -> None:
        self.bits, self.group, self.residual = bits, group, residual
        self.coded_keys: list[Stored] = []  # groups [tokens, D]
        self.coded_values: list[Stored] = []
        self.keys: list[Stored] = []
        self.values: list[Stored] = []

    def _nbytes(self) -> int:
        return sum(stored.nbytes for stored in [*self.coded_keys, *self.coded_values, *self.keys, *self.values])

    def step(self, query: Array, key: Array, value: Array) -> Step:
        self.keys.append(float16(key))
        self.values.append(float16(value))
        keys = [row for group in self.coded_keys for row in group.decoded] + [key.decoded for key in self.keys]
        values = [value.decoded for value in [*self.coded_values, *self.values]]
        output, read = weights(query, keys) @ np.stack(values).astype(np.float64), self._nbytes()
        if len(self.keys) == self.residual:
            for at in range(0, self.residual, self.group):
                rows = np.stack([key.decoded for key in self.keys[at : at + self.group]])
                channels = [codes(channel, self.bits) for channel in rows.T]
                arrays = tuple(array for channel in channels for array in channel.arrays)
                self.coded_keys.append(Stored(arrays, np.stack([channel.decoded for channel in channels], axis=1)))
            self.keys = []
        if len(self.values) > self.residual:
            self.coded_values.append(grouped(self.values.pop(0).decoded, self.bits, self.group))
        return Step(output, self._nbytes(), read)


class DeltaCache:
    """The library's own packed cache, in plain numpy (docs/cache-format.md)."""

    def __init__(self, layout: PackedLayout, rules: CodingRules, tokens: int) -> None:
        rows = layout.rows_needed(tokens)
        slabs = (np.zeros((rows, layout.bytes_per_token), np.uint8) for _ in range(2))
        self.cache = PackedCache(*slabs, layout, rules, 0)

    def step(self, query: Array, key: Array, value: Array) -> Step:
        self.cache.append(key, value)
        output, _ = attend_rows(query, self.cache.rows(), Scoring(1.0, 0.0, 0.0, None), None)
        return Step(output, *self.cache.bytes_in_use(np.ones(self.cache.tokens, bool)))


def run(make: Callable[[int], Cache], query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """Every window, KV head and token in turn.

    Args:
        make: a KV head's number to its empty cache.
        query: float32 [B, Hq, S, D], times the scale.
        key: float32 [B, Hkv, S, D].
        value: the same.

    Returns:
        output [B, Hq, S, D]; bytes kept and read, int64 [B, S].
    """
    B, Hkv, S, _ = key.shape
    G = query.shape[1] // Hkv
    output = np.zeros(query.shape)
    kept, read = np.zeros((B, S), np.int64), np.zeros((B, S), np.int64)
    for b in range(B):
        for head in range(Hkv):
            cache: Any = make(head)
            heads = slice(head * G, (head + 1) * G)
            for t in range(S):
                step = cache.step(query[b, heads, t], key[b, head, t], value[b, head, t])
                output[b, heads, t] = step.output
                kept[b, t] += step.kept
                read[b, t] += step.read
    return output, kept, read
