"""Sequences for packed caches, split into calls, run by the oracle and by the operator."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from support.op_session import delta_attention_model, session
from support.random_cases import key_rows

from deltallm_onnx.packed_sizes import bytes_per_token
from deltallm_onnx.reference import delta_attention
from deltallm_onnx.reference.hold import check_row_weight, check_threshold
from deltallm_onnx.reference.packed import CodingRules, PackedCache, PackedLayout

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class PackedCase:
    """A batch of sequences and the attributes of the operator that reads them.

    Attributes:
        cache_format: "int8" or "int4".
        kv_heads: Hkv.
        group: G, query heads per KV head.
        head_size: D.
        tokens: columns T of the whole sequence, left padding included.
        starts: first real token of every batch row.
        window: delta_window.
        sinks: first tokens that stay exact.
        theta: threshold of the first KV head; others get a little more.
        granularity: "element" or "row".
        row_rule: "relative" or "absolute".
        refresh: keyframes; 0 = never.
        prefill: "exact" or "delta".
        local_window: local_window_size.
        softcap: 0 = none.
        v_skip: ε.
        bias: whether there is an attention_bias.
        head_sink: whether there is one.
        row_weight: whether there is one (granularity row).
        spare: rows that the first past has beyond what the sequence needs; None: the past grows with every call.
        seed: of keys, values, queries.
    """

    cache_format: str = "int8"
    kv_heads: int = 2
    group: int = 3
    head_size: int = 20
    tokens: int = 61
    starts: tuple[int, ...] = (0,)
    window: int = 9
    sinks: int = 2
    theta: float = 0.4
    granularity: str = "row"
    row_rule: str = "relative"
    refresh: int = 0
    prefill: str = "delta"
    local_window: int = -1
    softcap: float = 0.0
    v_skip: float = 0.0
    bias: bool = False
    head_sink: bool = False
    row_weight: bool = False
    spare: int | None = None
    seed: int = 0

    def replace(self, **changes: Any) -> PackedCase:
        return dataclasses.replace(self, **changes)

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the operator, and of the oracle."""
        return {
            "num_heads": self.kv_heads * self.group,
            "kv_num_heads": self.kv_heads,
            "delta_window": self.window,
            "sinks": self.sinks,
            "granularity": self.granularity,
            "row_rule": self.row_rule,
            "refresh": self.refresh,
            "prefill": self.prefill,
            "local_window_size": self.local_window,
            "softcap": self.softcap,
            "v_skip": self.v_skip,
            "cache_format": self.cache_format,
        }

    @property
    def merges(self) -> bool:
        return self.granularity == "row" and self.local_window == -1 and not self.bias

    @property
    def layout(self) -> PackedLayout:
        return PackedLayout(self.cache_format, self.head_size, self.sinks, self.window)

    @property
    def threshold(self) -> Array:
        return (self.theta * (1 + 0.25 * np.arange(self.kv_heads))).astype(np.float32)

    def rules(self, head: int) -> CodingRules:
        weight = self.constants().get("row_weight")
        return CodingRules(
            check_threshold(self.threshold, self.kv_heads, self.head_size, self.granularity)[head],
            check_row_weight(weight, self.kv_heads, self.head_size)[head],
            self.granularity,
            self.row_rule,
            self.refresh,
            self.merges,
        )

    def sequence(self) -> dict[str, Array]:
        """query [B, T, Hq·D], key and value [B, T, Hkv·D], float32."""
        rng = np.random.default_rng(self.seed)
        B, T, Hkv, D = len(self.starts), self.tokens, self.kv_heads, self.head_size
        key = key_rows(rng, (B, Hkv, T, D), grid=False).transpose(0, 2, 1, 3).reshape(B, T, -1)
        value = rng.normal(0, 1, (B, T, Hkv * D)).astype(np.float32)
        query = rng.normal(0, 1, (B, T, Hkv * self.group * D)).astype(np.float32)
        return {"query": query, "key": np.ascontiguousarray(key), "value": value}

    def constants(self) -> dict[str, Array]:
        """Inputs that are the same in every call."""
        rng = np.random.default_rng(self.seed + 1)
        inputs = {"threshold": self.threshold}
        if self.row_weight:
            inputs["row_weight"] = rng.uniform(0.2, 2, (self.kv_heads, self.head_size)).astype(np.float32)
        if self.head_sink:
            inputs["head_sink"] = rng.normal(0, 1, self.kv_heads * self.group).astype(np.float32)
        return inputs

    def feeds(self, begin: int, end: int) -> dict[str, Array]:
        """Inputs of the call that brings tokens begin to end − 1, without the past."""
        parts = {name: np.ascontiguousarray(x[:, begin:end]) for name, x in self.sequence().items()}
        mask = (np.arange(end) >= np.array(self.starts)[:, None]).astype(np.int64)
        inputs = {**parts, **self.constants(), "attention_mask": mask}
        if self.bias:
            bias = np.random.default_rng(self.seed + 2).normal(0, 1, (1, self.group, self.tokens, self.tokens))
            heads = np.tile(bias[:, :, begin:end, :end], (1, self.kv_heads, 1, 1))
            inputs["attention_bias"] = np.ascontiguousarray(heads, np.float32)
        return inputs

    def first_past(self) -> Array | None:
        """An empty past with room for the whole sequence; None where the past grows."""
        if self.spare is None:
            return None
        rows = self.layout.rows_needed(self.tokens) + self.spare
        last = bytes_per_token(self.cache_format, self.head_size)
        # What lies in an empty cache is nobody's business.
        return np.full((len(self.starts), self.kv_heads, rows, last), 0xA5, np.uint8)

    def in_use(self, present_key: Array, present_value: Array, *, tokens: Array | None = None) -> tuple[Array, Array]:
        """Bytes that docs/cache-format.md specifies, two bool arrays like the presents.

        Args:
            present_key: uint8 [B, Hkv, capacity, bytes_per_token].
            present_value: the same.
            tokens: tokens of every batch row; None: those of the whole sequence.
        """
        marks = np.zeros(present_key.shape, bool), np.zeros(present_value.shape, bool)
        counts = self.tokens - np.array(self.starts) if tokens is None else tokens
        for b, count in enumerate(counts):
            for head in range(self.kv_heads):
                slabs = present_key[b, head].copy(), present_value[b, head].copy()
                cache = PackedCache(*slabs, self.layout, self.rules(head), max(int(count), 0))
                for mark, used in zip(marks, cache.in_use(), strict=True):
                    mark[b, head] = used.reshape(mark.shape[2:])
        return marks


@dataclasses.dataclass
class PackedRun:
    """What a sequence of calls gave: outputs [B, T, Hq·D], the last presents, the statistics of every call."""

    output: Array
    key: Array
    value: Array
    statistics: list[Array]


def run_oracle(case: PackedCase, chunks: Sequence[int]) -> PackedRun:
    """The calls in the oracle; chunks are tokens per call and add up to case.tokens."""
    past: dict[str, Array] = {}
    empty = case.first_past()
    if empty is not None:
        past = {"past_key": empty, "past_value": empty}
    outputs, counts = [], []
    for begin, end in _edges(case, chunks):
        result = delta_attention(**case.feeds(begin, end), **past, **case.attributes)
        output, past["past_key"], past["past_value"], statistics = result
        outputs.append(output)
        counts.append(statistics)
    return PackedRun(np.concatenate(outputs, axis=1), past["past_key"], past["past_value"], counts)


def run_operator(
    case: PackedCase,
    chunks: Sequence[int],
    *,
    threads: int = 1,
    isa: str | None = None,
    in_place: bool = False,
    prefill_compute: str = "float32",
) -> PackedRun:
    """The same calls in one ONNX Runtime session; in place needs a case with spare rows."""
    attributes = {**case.attributes, "prefill_compute": prefill_compute}
    empty = case.first_past()
    if empty is None:
        rows = (len(case.starts), case.kv_heads, 0, case.layout.bytes_per_token)
        empty = np.zeros(rows, np.uint8)
    past = {name: ort.OrtValue.ortvalue_from_numpy(empty.copy()) for name in ("past_key", "past_value")}
    running: ort.InferenceSession | None = None
    outputs, counts = [], []
    for begin, end in _edges(case, chunks):
        feeds = case.feeds(begin, end)
        if running is None:
            model = delta_attention_model({**feeds, "past_key": empty, "past_value": empty}, **attributes)
            running = session(model, threads=threads, isa=isa)
        binding = running.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in past.items():
            binding.bind_ortvalue_input(name, value)
            present = name.replace("past", "present")
            if in_place:
                binding.bind_ortvalue_output(present, value)
            else:
                binding.bind_output(present)
        binding.bind_output("output")
        binding.bind_output("statistics")
        running.run_with_iobinding(binding)
        key, value, output, statistics = binding.get_outputs()
        if not in_place:  # a bound value is handed out again without the array that owns its memory
            past = {"past_key": key, "past_value": value}
        outputs.append(output.numpy().copy())
        counts.append(statistics.numpy().copy())
    key, value = (past[name].numpy().copy() for name in ("past_key", "past_value"))
    return PackedRun(np.concatenate(outputs, axis=1), key, value, counts)


def assert_same_bytes(case: PackedCase, found: PackedRun, expected: PackedRun) -> None:
    """Equal in every byte that the format specifies."""
    marks = case.in_use(expected.key, expected.value)
    pairs = ((found.key, expected.key), (found.value, expected.value))
    for (have, want), mark, name in zip(pairs, marks, ("key", "value"), strict=True):
        assert have.shape == want.shape, name
        assert mark.any(axis=(2, 3)).all() or case.tokens <= max(case.starts)
        np.testing.assert_array_equal(have[mark], want[mark], err_msg=f"present_{name} of {case}")


def token_by_token(case: PackedCase) -> list[int]:
    return [1] * case.tokens


def _edges(case: PackedCase, chunks: Sequence[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(chunks)
    assert ends[-1] == case.tokens
    return [(int(end - size), int(end)) for size, end in zip(chunks, ends, strict=True)]
