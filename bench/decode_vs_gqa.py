"""Decode: DeltaAttention against ONNX Runtime's GroupQueryAttention, one layer, one new token, caches updated in place.

Every round runs each contender once over a ring of cache buffers larger than any processor cache, so that keys and
values come from memory as they do in a model with many layers. One thread is measured in thread-CPU time, which other
processes on the machine hardly change; several threads in wall time. Ratios are medians over rounds of the quotient
within one round.

    python bench/decode_vs_gqa.py --out bench/records/decode_vs_gqa.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from deltallm_onnx.runtime import ops_library_path
from deltallm_onnx.runtime.environment import environment

HEADS, KV_HEADS, HEAD_SIZE = 32, 8, 64  # Llama-3.2-1B
WINDOW, SINKS, THRESHOLD = 128, 4, 0.6  # profile "balanced"
RING_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run an attention layer."""

    name: str
    op_type: str
    domain: str
    cache: type[np.floating[Any]]
    cache_mode: str


CONTENDERS = (
    Contender("GroupQueryAttention float32", "GroupQueryAttention", "com.microsoft", np.float32, "shared buffer"),
    Contender("DeltaAttention float32", "DeltaAttention", "ai.deltallm", np.float32, "in place"),
    Contender("DeltaAttention float16 cache", "DeltaAttention", "ai.deltallm", np.float16, "in place"),
)


def model(contender: Contender) -> bytes:
    """One node; GroupQueryAttention's first seven inputs, and a threshold for DeltaAttention."""
    cache = helper.np_dtype_to_tensor_dtype(np.dtype(contender.cache))
    ours = contender.op_type == "DeltaAttention"
    names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"]
    widths = {"query": HEADS, "key": KV_HEADS, "value": KV_HEADS}
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", "s", heads * HEAD_SIZE])
        for name, heads in widths.items()
    ]
    inputs += [helper.make_tensor_value_info(n, cache, ["b", KV_HEADS, "c", HEAD_SIZE]) for n in names[3:5]]
    inputs += [helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["b"])]
    inputs += [helper.make_tensor_value_info("total", TensorProto.INT32, [1])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)]
    outputs += [helper.make_tensor_value_info(n, cache, None) for n in ("present_key", "present_value")]
    attributes: dict[str, Any] = {"num_heads": HEADS, "kv_num_heads": KV_HEADS}
    initializers = []
    if ours:
        attributes |= {"granularity": "row", "delta_window": WINDOW, "sinks": SINKS, "prefill": "exact"}
        threshold = np.full(KV_HEADS, THRESHOLD, np.float32)
        initializers = [numpy_helper.from_array(threshold, "threshold")]
        names += [""] * 9 + ["threshold"]
    node = helper.make_node(contender.op_type, names, [o.name for o in outputs], domain=contender.domain, **attributes)
    graph = helper.make_graph([node], contender.op_type, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(contender.domain, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized


class Ring:
    """A session of one contender and caches enough to defeat the processor's own."""

    def __init__(self, contender: Contender, past: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.register_custom_ops_library(str(ops_library_path()))
        self._session = ort.InferenceSession(model(contender), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        layer = 2 * KV_HEADS * (past + 1) * HEAD_SIZE * np.dtype(contender.cache).itemsize
        self._bindings = [self._bind(contender, past, rng) for _ in range(max(2, RING_BYTES // layer))]

    def _bind(self, contender: Contender, past: int, rng: np.random.Generator) -> Any:
        def value(array: Any) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(array)

        binding = self._session.io_binding()
        for name, heads in (("query", HEADS), ("key", KV_HEADS), ("value", KV_HEADS)):
            rows = rng.standard_normal((1, 1, heads * HEAD_SIZE), dtype=np.float32)
            binding.bind_ortvalue_input(name, value(rows))
        for name in ("key", "value"):
            rows = rng.standard_normal((1, KV_HEADS, past + 1, HEAD_SIZE), dtype=np.float32)
            cache = value(rows.astype(contender.cache))
            binding.bind_ortvalue_input(f"past_{name}", cache)
            binding.bind_ortvalue_output(f"present_{name}", cache)
        binding.bind_ortvalue_input("seqlens_k", value(np.array([past], np.int32)))
        binding.bind_ortvalue_input("total", value(np.array([past + 1], np.int32)))
        binding.bind_output("output")
        return binding

    def step_microseconds(self, *, cpu_time: bool) -> float:
        """Mean time of one call over the ring."""
        clock = time.thread_time if cpu_time else time.perf_counter
        begin = clock()
        for binding in self._bindings:
            self._session.run_with_iobinding(binding)
        return (clock() - begin) / len(self._bindings) * 1e6


def measure(past: int, threads: int, seconds: float) -> dict[str, Any]:
    """Interleaved rounds of all contenders at one context length."""
    rings = {contender: Ring(contender, past, threads) for contender in CONTENDERS}
    cpu_time = threads == 1
    for ring in rings.values():
        ring.step_microseconds(cpu_time=cpu_time)
    times: dict[Contender, list[float]] = {contender: [] for contender in CONTENDERS}
    load = os.getloadavg()[0]
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times[CONTENDERS[0]]) < 5:
        for contender, ring in rings.items():
            times[contender].append(ring.step_microseconds(cpu_time=cpu_time))
    peer = times[CONTENDERS[0]]
    rows = []
    for contender in CONTENDERS:
        own = times[contender]
        deciles = statistics.quantiles(own, n=10)
        rows.append(
            {
                "name": contender.name,
                "cache_mode": contender.cache_mode,
                "median_us": round(statistics.median(own), 1),
                "p10_us": round(deciles[0], 1),
                "p90_us": round(deciles[-1], 1),
                "speedup_over_gqa": round(statistics.median(a / b for a, b in zip(peer, own, strict=True)), 3),
            }
        )
    return {
        "past_tokens": past,
        "threads": threads,
        "clock": "thread CPU time" if cpu_time else "wall time",
        "rounds": len(peer),
        "load_before": round(load, 2),
        "contenders": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--past", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--seconds", type=float, default=10.0, help="per context length and thread count")
    parser.add_argument("--out", type=Path, help="write a JSON record")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)

    results = []
    for threads in options.threads:
        for past in options.past:
            result = measure(past, threads, options.seconds)
            results.append(result)
            print(f"past {past}, threads {threads}, {result['clock']}, {result['rounds']} rounds")
            for row in result["contenders"]:
                print(
                    f"  {row['name']:30} {row['median_us']:9.1f} us  ({row['p10_us']:.1f} - {row['p90_us']:.1f})"
                    f"  {row['speedup_over_gqa']:.2f}x"
                )
    if options.out is not None:
        record = {
            "command": "python bench/decode_vs_gqa.py",
            **environment(),
            "geometry": {"heads": HEADS, "kv_heads": KV_HEADS, "head_size": HEAD_SIZE, "batch": 1, "new_tokens": 1},
            "delta": {"granularity": "row", "threshold": THRESHOLD, "delta_window": WINDOW, "sinks": SINKS},
            "ring_bytes": RING_BYTES,
            "results": results,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
