"""One attention layer in OpenVINO: its paged attention, the operator that its serving stack decodes and prompts with.

`PagedAttentionExtension` is an experimental class of the package openvino, in the form of its release 2026.4: the
operator has 28 inputs, ten of which change from call to call here.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.contenders import Contender
from bench.geometry import Geometry
from bench.layer import RING_BYTES, Setting
from bench.past import rows
from deltallm_onnx.bench.rounds import SPIN_SECONDS
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import huge_pages

OPENVINO = ("openvino", "PagedAttentionExtension")

_PRECISION_HINTS = {"float32": "f32", "bfloat16": "bf16"}
_LONGEST_RING = 1024
_TURN_SECONDS = 0.015
_MOST_CALLS = 256
_CACHES = ("key_cache", "value_cache")
#: `bench.layer`'s seed of the new rows, and `bench.past`'s of the keys and values of a past: everyone gets the same.
_SEED = 7
_PAST_SEEDS = {"key": 20250730, "value": 20250731}

#: Inputs 13 to 27, what they are for, and what switches them off: element type and value (None: an empty list).
_SWITCHED_OFF: tuple[tuple[str, type[np.generic], int | None], ...] = (
    ("score_aggregation_window", np.int32, None),
    ("rotated_block_indices", np.int32, None),
    ("rotation_deltas", np.int32, None),
    ("rotation_trig_lut", np.float32, None),
    ("xattention_threshold", np.float32, None),
    ("xattention_block_size", np.int32, 64),
    ("xattention_stride", np.int32, 8),
    ("sinks", np.float32, None),
    ("adaptive_rkv_start_size", np.int32, 0),
    ("adaptive_rkv_evictable_sizes", np.int32, None),
    ("adaptive_rkv_diversity_block_set_indices", np.int32, None),
    ("adaptive_rkv_diversity_block_set_indices_begins", np.int32, None),
    ("token_type_ids", np.int32, None),
    ("qq_bias", np.uint8, None),
    ("qq_bias_begins", np.int32, None),
)


def openvino_version() -> str:
    """Version and build of the package openvino.

    Raises:
        DeltaLLMError: where it is not installed.
    """
    try:
        from openvino import __version__  # noqa: PLC0415  # an optional peer
    except ImportError as error:
        raise DeltaLLMError("OpenVINO is not installed: see the head of bench/openvino_peer.py.") from error
    return str(__version__)


def model(geometry: Geometry) -> Any:
    """An OpenVINO model of one paged attention layer.

    Inputs: query [S, Hq·D], key and value [S, Hkv·D] float32, of one or several sequences one after the other;
    key_cache and value_cache [blocks, Hkv, …] of whatever type the plugin chooses, written in place; int32 past_lens
    [sequences], subsequence_begins [sequences + 1], block_indices [blocks in use], block_indices_begins
    [sequences + 1] and max_context_len []. Output: [S, Hq·D] float32.
    """
    from openvino import Model, PartialShape, Type  # noqa: PLC0415  # an optional peer
    from openvino import opset13 as op  # noqa: PLC0415  # the same
    from openvino.op import _PagedAttentionExtension  # noqa: PLC0415  # it has no public name

    def given(name: str, shape: Any, kind: Any) -> Any:
        parameter = op.parameter(PartialShape(shape), kind, name=name)
        parameter.output(0).get_tensor().set_names({name})
        return parameter

    def fixed(kind: type[np.generic], value: float | None) -> Any:
        return op.constant(np.zeros(0, kind) if value is None else np.array(value, kind))

    query_width, width = geometry.heads * geometry.head_size, geometry.kv_heads * geometry.head_size
    tokens = [given("query", [-1, query_width], Type.f32)]
    tokens += [given(name, [-1, width], Type.f32) for name in ("key", "value")]
    caches = [given(name, PartialShape.dynamic(4), Type.dynamic) for name in ("key_cache", "value_cache")]
    names = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")
    sequences = [given(name, [-1], Type.i32) for name in names]
    longest = given("max_context_len", [], Type.i32)
    scale, no_window = fixed(np.float32, geometry.head_size**-0.5), fixed(np.int32, 0)
    no_slopes = fixed(np.float32, None)
    others = [fixed(kind, value) for _, kind, value in _SWITCHED_OFF]
    inputs = [*tokens, *caches, *sequences, scale, no_window, no_slopes, longest, *others]
    node = _PagedAttentionExtension([each.output(0) for each in inputs])
    sizes = node.get_rt_info()  # the plugin takes the caches' shapes from here
    sizes["num_k_heads"] = sizes["num_v_heads"] = geometry.kv_heads
    sizes["k_head_size"] = sizes["v_head_size"] = geometry.head_size
    return Model([op.result(node.output(0))], [*tokens, *caches, *sequences, longest], "attention")


class PagedLayer:
    """Calls of OpenVINO's paged attention, timed one by one, with `bench.layer.Layer`'s interface.

    All sequences of the ring lie in one pool of blocks; a call reads and writes those of one sequence. One thread is
    measured in the CPU time of the whole process: OpenVINO need not compute on the thread that calls it.

    Args:
        contender: its cache is the cache precision to ask for, its first arithmetic the inference precision.
        geometry: of the layer.
        setting: what it runs on.
        ring_bytes: bytes of caches to go round, at least one cache in any case.

    Raises:
        DeltaLLMError: without the package openvino.
        Exception: OpenVINO's, where it refuses the model.
    """

    def __init__(
        self, contender: Contender, geometry: Geometry, setting: Setting, *, ring_bytes: int = RING_BYTES
    ) -> None:
        openvino_version()
        from openvino import Core  # noqa: PLC0415  # an optional peer

        self.contender, self.geometry, self.setting = contender, geometry, setting
        config = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # nobody else pins
            "KV_CACHE_PRECISION": contender.cache,
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[contender.arithmetic[0]],
        }
        self._compiled = Core().compile_model(model(geometry), "CPU", config)
        self._check_precisions()
        self._request = self._compiled.create_infer_request()
        self._block = self._compiled.input("value_cache").get_partial_shape()[2].get_length()
        self._blocks = -(-setting.longest // self._block)
        self.capacity = self._blocks * self._block
        self.cache_bytes = sum(self._pool_bytes(name, self._blocks) for name in _CACHES)
        self._ring = max(1, min(-(-ring_bytes // self.cache_bytes), _LONGEST_RING))
        #: The arrays that OpenVINO reads and writes without knowing who owns them.
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._pools = [self._pool(name) for name in _CACHES]
        self._fill()
        self._pristine = [pool[0].copy() for pool in self._pools]
        self._give_new_tokens()
        self._tables = [np.arange(i * self._blocks, (i + 1) * self._blocks, dtype=np.int32) for i in range(self._ring)]
        self._calls_on = [0] * self._ring
        self._now = time.process_time if setting.threads == 1 and not setting.wall else time.perf_counter
        self._next = 0
        took = min(self._call() for _ in range(2))
        self._calls = max(1, min(int(_TURN_SECONDS / max(took, 1e-6)), _MOST_CALLS))

    def turn(self) -> float:
        """Seconds per call over one turn."""
        if self.setting.threads > 1 or self.setting.wall:
            time.sleep(SPIN_SECONDS)
            self._call()
        return sum(self._call() for _ in range(self._calls)) / self._calls

    def probe(self) -> tuple[npt.NDArray[np.float32], None]:
        """The output of a first call [1, S, Hq·D]; OpenVINO counts nothing."""
        self._put_back(0)
        self._next = 0
        self._call()
        output: npt.NDArray[np.float32] = self._arrays["output"].copy()
        self._put_back(0)
        return output[None], None

    def _check_precisions(self) -> None:
        """The plugin takes others where the processor lacks an instruction, and says nothing."""
        asked = (self.contender.cache, self.contender.cache, _PRECISION_HINTS[self.contender.arithmetic[0]])
        types = [self._compiled.input(name).get_element_type() for name in _CACHES]
        found = tuple(kind.to_string() for kind in (*types, self._compiled.get_property("INFERENCE_PRECISION_HINT")))
        if found != asked:
            raise DeltaLLMError(f"OpenVINO runs on this machine with {', '.join(found)} instead of {', '.join(asked)}.")

    def _call(self) -> float:
        """One call on the next sequence of the ring; what prepares it is not timed."""
        index = self._next
        self._next = (index + 1) % self._ring
        past = self.setting.first_past + self._calls_on[index]
        self._arrays["past_lens"][0] = past
        self._arrays["max_context_len"][...] = past + self.setting.new
        self._give("block_indices", self._tables[index])
        began = self._now()
        self._request.infer(share_outputs=True)
        took = self._now() - began
        self._calls_on[index] += 1
        if self._calls_on[index] >= self.setting.span:
            self._put_back(index)
        return took

    def _put_back(self, index: int) -> None:
        self._calls_on[index] = 0
        if self.setting.first_past:
            for pool, pristine in zip(self._pools, self._pristine, strict=True):
                np.copyto(pool[index], pristine)

    def _fill(self) -> None:
        """The rows that the other contenders hold, the same in every head, in the caches of every sequence.

        Written by the operator itself: as sequences of one block each, so that their length does not count squared.
        """
        past = self.setting.first_past
        if past == 0:
            return
        begins = np.minimum(np.arange(0, past + self._block, self._block), past).astype(np.int32)
        count = len(begins) - 1
        self._give("query", np.zeros((past, self.geometry.heads * self.geometry.head_size), np.float32))
        for name, seed in _PAST_SEEDS.items():
            self._give(name, np.tile(rows(past, self.geometry.head_size, seed)[0], (1, self.geometry.kv_heads)))
        self._give("past_lens", np.zeros(count, np.int32))
        self._give("subsequence_begins", begins)
        self._give("block_indices", np.arange(count, dtype=np.int32))
        self._give("block_indices_begins", np.arange(count + 1, dtype=np.int32))
        self._give("max_context_len", np.array(self._block, np.int32))
        self._request.infer(share_outputs=True)
        for pool in self._pools:
            pool[1:] = pool[0]

    def _give_new_tokens(self) -> None:
        """The new rows that the other contenders get, and one sequence per call."""
        geometry, new = self.geometry, self.setting.new
        widths = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        for seed, (name, heads) in enumerate(widths.items(), start=_SEED):
            self._give(name, rows(new, heads * geometry.head_size, seed)[0])
        self._give("past_lens", np.zeros(1, np.int32))
        self._give("subsequence_begins", np.array([0, new], np.int32))
        self._give("block_indices_begins", np.array([0, self._blocks], np.int32))
        self._give("max_context_len", np.zeros((), np.int32))
        from openvino import Tensor  # noqa: PLC0415  # an optional peer

        self._arrays["output"] = huge_pages.zeros((new, geometry.heads * geometry.head_size), np.float32)
        self._request.set_output_tensor(Tensor(self._arrays["output"], shared_memory=True))

    def _give(self, name: str, array: npt.NDArray[Any]) -> None:
        """Set an input to the array's own memory and keep that alive."""
        from openvino import Tensor  # noqa: PLC0415  # an optional peer

        self._request.set_tensor(name, Tensor(array, shared_memory=True))
        self._arrays[name] = array

    def _pool(self, name: str) -> npt.NDArray[np.uint8]:
        """A cache of all sequences on huge pages [sequences, bytes]."""
        from openvino import Shape, Tensor  # noqa: PLC0415  # an optional peer

        port = self._compiled.input(name)
        whole = huge_pages.zeros((self._ring, self._pool_bytes(name, self._blocks)), np.uint8)
        whole[:] = 0  # have the pages now, or prompts would pay for them
        shape = Shape([self._ring * self._blocks, *self._block_shape(name)])
        self._request.set_tensor(name, Tensor(whole, shape, port.get_element_type()))
        return whole

    def _pool_bytes(self, name: str, blocks: int) -> int:
        bits: int = self._compiled.input(name).get_element_type().bitwidth
        return blocks * int(np.prod(self._block_shape(name))) * bits // 8

    def _block_shape(self, name: str) -> list[int]:
        """Heads, tokens (and whatever scales them), channels of a block."""
        return [axis.get_length() for axis in list(self._compiled.input(name).get_partial_shape())[1:]]
