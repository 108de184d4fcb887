"""One contender at one setting: a session, and a ring of caches that the processor's own caches cannot hold."""

from __future__ import annotations

import dataclasses
import mmap
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bench.contenders import Contender, capacity_for, one_node_model
from bench.geometry import Geometry
from bench.past import filled_caches, rows
from deltallm_onnx.bench import clock
from deltallm_onnx.bench.rounds import SPIN_SECONDS
from deltallm_onnx.runtime import huge_pages, register

#: Bytes of a ring of caches. Keys and values come from memory as in a model of many layers.
RING_BYTES = 128 << 20
#: A ring is never longer: many small caches would take longer to make than to measure.
_LONGEST_RING = 1024
#: One contender's share of a round, in seconds: long against the clock's own cost, short against drift.
_TURN_SECONDS = 0.015
_MOST_CALLS = 256
#: Calls that take so long are warmed up once: what a first call allocates is a small part of them.
_LONG_SECONDS = 0.1
#: A peer is opened so often and measured in the fastest of its sessions: one and the same GroupQueryAttention with an
#: int8 cache takes 1.9 ms a step in one session and 3.1 ms in the next.
_PEER_SESSIONS = 4
_SEED = 7


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        past: tokens in the cache before a call. A decode step goes through `span` lengths centred here.
        new: S, tokens of the call.
        span: calls on one cache before it is put back as it was; 0 = never, for prompts, which overwrite it.
        threads: intra-op threads.
        wall: measure wall time on one thread too.
    """

    past: int
    new: int
    span: int
    threads: int
    wall: bool = False

    @property
    def first_past(self) -> int:
        """Tokens in a cache that was put back."""
        return self.past - self.span // 2 if self.span > 1 else self.past

    @property
    def longest(self) -> int:
        """Tokens in a cache after the last call."""
        return self.first_past + max(self.span, 1) - 1 + self.new


class Layer:
    """Calls of one contender, timed one by one.

    Args:
        contender: what runs.
        geometry: of the layer.
        setting: what it runs on.
        ring_bytes: bytes of caches to go round, at least one cache in any case.

    Raises:
        Exception: ONNX Runtime's, where it does not know or refuses the node.
    """

    def __init__(
        self, contender: Contender, geometry: Geometry, setting: Setting, *, ring_bytes: int = RING_BYTES
    ) -> None:
        self.contender = contender
        self.geometry = geometry
        self.setting = setting
        self.capacity = capacity_for(contender, geometry, setting.longest)
        self._pristine = filled_caches(contender, geometry, setting.first_past, self.capacity)
        self.cache_bytes = sum(cache.nbytes for cache in self._pristine)
        length = max(1, min(-(-ring_bytes // self.cache_bytes), _LONGEST_RING))
        self._ring = [_Cached(self._pristine, room, setting.span) for room in _rooms(self._pristine, length)]
        self._lengths = [_lengths(setting.first_past + i, setting.new) for i in range(max(setting.span, 1))]
        self._output = _value(huge_pages.zeros((1, setting.new, geometry.heads * geometry.head_size), np.float32))
        self._now = time.perf_counter if setting.wall else clock(setting.threads)
        self._next = 0
        self._calls = 1
        self._session, self._bindings = self._opened()
        self.warm_up()
        for _ in range(0 if contender.ours else _PEER_SESSIONS - 1):
            self._keep_if_faster(*self._opened())

    def warm_up(self) -> None:
        """The first calls allocate; how long they take says how many fit into a turn."""
        for _ in range(3):
            took = self._call()
            if took > _LONG_SECONDS:
                break
        self._calls = max(1, min(int(_TURN_SECONDS / max(took, 1e-6)), _MOST_CALLS))

    def turn(self) -> float:
        """Seconds per call over one turn."""
        if self.setting.threads > 1 or self.setting.wall:
            # The worker threads of the contender before still spin on the cores; ours sleep.
            time.sleep(SPIN_SECONDS)
            self._call()
        return sum(self._call() for _ in range(self._calls)) / self._calls

    def probe(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64] | None]:
        """One more call, on a cache as it was filled.

        Returns:
            The output [1, S, Hq·D], and of DeltaAttention the raw counts [Hkv, 8] (docs/spec.md section 6).
        """
        counted = self.contender.ours
        session = _session(one_node_model(self.contender, self.geometry, statistics=counted), self.setting.threads)
        (room,) = _rooms(self._pristine, 1)
        binding = self._bind(_Cached(self._pristine, room, 0), session)
        if counted:
            binding.bind_output("statistics")
        for name, value in self._lengths[0].items():
            binding.bind_ortvalue_input(name, value)
        session.run_with_iobinding(binding)
        return self._output.numpy().copy(), binding.get_outputs()[-1].numpy().copy() if counted else None

    def _opened(self) -> tuple[ort.InferenceSession, list[Any]]:
        """A session of its own, and its bindings to the caches of the ring."""
        session = _session(one_node_model(self.contender, self.geometry), self.setting.threads)
        return session, [self._bind(cached, session) for cached in self._ring]

    def _keep_if_faster(self, session: ort.InferenceSession, bindings: list[Any]) -> None:
        kept, took = (self._session, self._bindings), self.turn()
        self._session, self._bindings = session, bindings
        self.warm_up()
        if self.turn() >= took:
            self._session, self._bindings = kept

    def _bind(self, cached: _Cached, session: ort.InferenceSession) -> Any:
        geometry, new = self.geometry, self.setting.new
        binding = session.io_binding()
        widths = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        for seed, (name, heads) in enumerate(widths.items(), start=_SEED):
            binding.bind_ortvalue_input(name, _value(rows(new, heads * geometry.head_size, seed)))
        for name, value in cached.values.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_ortvalue_output("output", self._output)
        return binding

    def _call(self) -> float:
        """One call on the next cache of the ring; what prepares it is not timed."""
        cached, binding = self._ring[self._next], self._bindings[self._next]
        self._next = (self._next + 1) % len(self._ring)
        for name, value in self._lengths[0 if self.contender.repeated else cached.calls].items():
            binding.bind_ortvalue_input(name, value)
        began = self._now()
        self._session.run_with_iobinding(binding)
        took = self._now() - began
        cached.count_call()
        return took


class _Cached:
    """Key and value cache of one layer, and how often they were used since they were put back."""

    def __init__(self, pristine: tuple[npt.NDArray[Any], ...], room: npt.NDArray[np.uint8], span: int) -> None:
        self._pristine = pristine
        self._arrays = tuple(
            bytes_[: array.nbytes].view(array.dtype).reshape(array.shape)
            for bytes_, array in zip(room, pristine, strict=True)
        )
        self._span = span
        self.values = {name: _value(array) for name, array in zip(("key", "value"), self._arrays, strict=True)}
        self.calls = 0
        self._put_back()

    def count_call(self) -> None:
        if self._span:
            self.calls += 1
            if self.calls == self._span:
                self._put_back()

    def _put_back(self) -> None:
        self.calls = 0
        for array, original in zip(self._arrays, self._pristine, strict=True):
            np.copyto(array, original)


def _rooms(pristine: tuple[npt.NDArray[Any], ...], count: int) -> npt.NDArray[np.uint8]:
    """Memory for so many pairs of caches [count, 2, bytes], together on huge pages; each begins on a page."""
    largest = max(array.nbytes for array in pristine)
    return huge_pages.zeros((count, len(pristine), -(-largest // mmap.PAGESIZE) * mmap.PAGESIZE), np.uint8)


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    register(options)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _lengths(past: int, new: int) -> dict[str, Any]:
    total = past + new
    return {"seqlens_k": _value(np.array([total - 1], np.int32)), "total": _value(np.array([total], np.int32))}


def _value(array: npt.NDArray[Any]) -> Any:
    """An OrtValue over the array's own memory, which it keeps alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)
