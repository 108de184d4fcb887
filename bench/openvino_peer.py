"""The same layer in OpenVINO, whose attention keeps its caches inside the runtime: an optional peer, run by hand.

    python3 -m venv build/openvino && build/openvino/bin/pip install . openvino
    build/openvino/bin/python -m bench.openvino_peer --record bench/records

Decode steps and prompts of ours, of GroupQueryAttention and of OpenVINO's stateful attention operator with f16
and u8 caches, in float32 and bfloat16 arithmetic, interleaved in one process as in `bench.attention`. One thread is
measured in the CPU time of the whole process here: OpenVINO need not compute on the thread that calls it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from bench.attention import CHUNK_PAST, measure, table
from bench.contenders import PEERS, Contender, delta, prefill
from bench.geometry import GEOMETRIES, Geometry
from bench.layer import RING_BYTES, Layer, Setting
from bench.past import rows
from bench.roofline import machine_rates
from deltallm_onnx.bench import write_record
from deltallm_onnx.bench.rounds import SPIN_SECONDS
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.environment import environment

OPENVINO = ("openvino", "ScaledDotProductAttention")
_BYTES = {"f16": 2.0, "u8": 1.0}
#: Decode steps on one cache before its past is read again; as long as the other contenders' span.
_SPAN = 128
_LONGEST_RING = 64


def openvino_contender(cache: str, compute: str) -> Contender:
    """OpenVINO with a cache precision ("f16", "u8") and an inference precision ("f32", "bf16")."""
    kind = {"f32": "float32", "bf16": "bfloat16"}[compute]
    return Contender(f"OpenVINO {cache} cache, {compute}", OPENVINO, cache, arithmetic=(kind, kind))


def model(geometry: Geometry, *, causal: bool) -> Any:
    """One stateful layer: query [1,Hq,S,D], key and value [1,Hkv,S,D] → output [1,Hq,S,D]; keys and values are kept.

    Args:
        geometry: of the layer.
        causal: for prompts from empty. OpenVINO lets query i see key i and no later one, whatever came before.
    """
    from openvino import Dimension, Model, PartialShape, Type  # noqa: PLC0415  # an optional peer
    from openvino import opset13 as op  # noqa: PLC0415  # the same

    size, group = geometry.head_size, geometry.heads // geometry.kv_heads
    parameters = [
        op.parameter(PartialShape([1, heads, Dimension(), size]), Type.f32, name=name)
        for name, heads in (("query", geometry.heads), ("key", geometry.kv_heads), ("value", geometry.kv_heads))
    ]
    beam = op.parameter(PartialShape([1]), Type.i32, name="beam_idx")
    sinks, present = [], []
    for parameter in parameters[1:]:
        name = parameter.get_friendly_name()
        empty = op.constant(np.zeros((1, geometry.kv_heads, 0, size), np.float32))
        past = op.read_value(empty, f"past_{name}", Type.f32, PartialShape([1, geometry.kv_heads, Dimension(), size]))
        kept = op.gather(past, beam, op.constant(np.int64(0)))
        whole = op.concat([kept, parameter], 2)
        sinks.append(op.assign(whole, f"past_{name}"))
        if group > 1:  # the spelling of shared heads that OpenVINO recognises
            repeated = op.broadcast(
                op.unsqueeze(whole, op.constant(np.int64(2))),
                op.constant(np.array([1, 1, group, 1, 1], np.int64)),
                broadcast_spec="BIDIRECTIONAL",
            )
            whole = op.reshape(repeated, op.constant(np.array([0, geometry.heads, -1, size], np.int64)), True)
        present.append(whole)
    output = op.scaled_dot_product_attention(parameters[0], *present, causal=causal)
    return Model([op.result(output)], sinks, [*parameters, beam], "attention")


class OpenVinoLayer:
    """Calls of OpenVINO, timed one by one, with `Layer`'s interface.

    Args:
        contender: cache and inference precision.
        geometry: of the layer.
        setting: what it runs on; a past before a longer call is not supported.
        ring_bytes: bytes of caches to go round.

    Raises:
        DeltaLLMError: without the package openvino, and where it does not fuse cache and attention.
    """

    def __init__(self, contender: Contender, geometry: Geometry, setting: Setting, *, ring_bytes: int) -> None:
        try:
            from openvino import Core  # noqa: PLC0415  # an optional peer
        except ImportError as error:
            raise DeltaLLMError("OpenVINO is not installed: see the head of bench/openvino_peer.py.") from error
        self.contender, self.geometry, self.setting = contender, geometry, setting
        self.capacity = setting.longest
        token_bytes = 2 * geometry.kv_heads * geometry.head_size * _BYTES[contender.cache]
        self.cache_bytes = int(token_bytes * self.capacity)
        config = {
            "INFERENCE_NUM_THREADS": setting.threads,
            "NUM_STREAMS": 1,
            "KV_CACHE_PRECISION": contender.cache,
            "ENABLE_CPU_PINNING": False,  # nobody else pins
            "INFERENCE_PRECISION_HINT": contender.name.rsplit(" ", 1)[1],
        }
        self._compiled = Core().compile_model(model(geometry, causal=setting.new > 1), "CPU", config)
        kinds = {node.get_rt_info()["layerType"].astype(str) for node in self._compiled.get_runtime_model().get_ops()}
        if "ScaledDotProductAttention" not in kinds or kinds & {"Concatenation", "Broadcast", "Gather"}:
            raise DeltaLLMError(f"OpenVINO did not fuse cache and attention, it runs {', '.join(sorted(kinds))}.")
        length = max(1, min(int(-(-ring_bytes // self.cache_bytes)), _LONGEST_RING)) if setting.past else 1
        self._requests = [self._compiled.create_infer_request() for _ in range(length)]
        self._calls_on = [0] * length
        self._new = self._inputs(setting.new, seed=7)
        for request in self._requests:
            self._put_back(request)
        self._now = time.process_time if setting.threads == 1 and not setting.wall else time.perf_counter
        self._next = 0
        took = min(self._call() for _ in range(2))
        self._calls = max(1, min(int(0.015 / took), 64))

    def turn(self) -> float:
        """Seconds per call over one turn."""
        if self.setting.threads > 1:
            time.sleep(SPIN_SECONDS)
            self._call()
        return sum(self._call() for _ in range(self._calls)) / self._calls

    def probe(self) -> tuple[npt.NDArray[np.float32], None]:
        """The output of a first call [1, S, Hq·D]; OpenVINO counts nothing."""
        request = self._requests[0]
        self._put_back(request)
        request.infer(self._new)
        output = request.get_output_tensor().data.copy()  # the next call writes there
        self._put_back(request)
        self._calls_on[0] = 0
        return output.transpose(0, 2, 1, 3).reshape(1, self.setting.new, -1).astype(np.float32), None

    def _call(self) -> float:
        index, request = self._next, self._requests[self._next]
        self._next = (self._next + 1) % len(self._requests)
        began = self._now()
        request.infer(self._new)
        took = self._now() - began
        self._calls_on[index] += 1
        if self._calls_on[index] == max(self.setting.span, 1):
            self._calls_on[index] = 0
            self._put_back(request)
        return took

    def _put_back(self, request: Any) -> None:
        request.reset_state()
        if self.setting.first_past:
            request.infer(self._past())

    def _past(self) -> dict[str, Any]:
        """The rows that the other contenders hold: the same in every head (`bench.past`)."""
        past, geometry = self.setting.first_past, self.geometry
        shared = {name: rows(past, geometry.head_size, seed)[:, None] for name, seed in _PAST_SEEDS.items()}
        heads = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        tensors = {name: np.repeat(rows_, heads[name], axis=1) for name, rows_ in shared.items()}
        return {**tensors, "beam_idx": np.zeros(1, np.int32)}

    def _inputs(self, new: int, seed: int) -> dict[str, Any]:
        """The new rows that the other contenders get (`bench.layer`), heads first."""
        geometry = self.geometry
        inputs: dict[str, Any] = {"beam_idx": np.zeros(1, np.int32)}
        widths = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
        for offset, (name, heads) in enumerate(widths.items()):
            flat = rows(new, heads * geometry.head_size, seed + offset)
            inputs[name] = np.ascontiguousarray(flat.reshape(1, new, heads, -1).transpose(0, 2, 1, 3))
        return inputs


#: `bench.past`'s seeds of the rows of a past.
_PAST_SEEDS = {"key": 20250730, "value": 20250731, "query": 20250732}


def open_layer(contender: Contender, geometry: Geometry, setting: Setting, *, ring_bytes: int) -> Any:
    """A layer of whoever runs it."""
    kind = OpenVinoLayer if contender.operator == OPENVINO else Layer
    return kind(contender, geometry, setting, ring_bytes=ring_bytes)


def contenders(*, decode: bool) -> list[Contender]:
    """Who takes part in a decode step, or in a prompt; ours are compared with OpenVINO's quickest settings."""
    peers = [openvino_contender(cache, compute) for cache in ("f16", "u8") for compute in ("f32", "bf16")]
    quick = openvino_contender("u8", "bf16").name
    own = (
        [delta(cache) for cache in ("float16", "int8", "int4")]
        if decode
        else [prefill("float32", "float32"), *(prefill("int8", compute) for compute in ("bfloat16", "int8"))]
    )
    return [PEERS[0], *peers, *(dataclasses.replace(contender, against=quick) for contender in own)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.openvino_peer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--geometry", choices=tuple(GEOMETRIES), default="Llama-3.2-1B")
    parser.add_argument("--past", type=int, nargs="*", default=[1024, CHUNK_PAST])
    parser.add_argument("--prompt", type=int, nargs="*", default=[512, 2048, 4096])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=12.0, help="of rounds, per setting")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    geometry, console = GEOMETRIES[options.geometry], Console(width=None if sys.stdout.isatty() else 150)
    try:
        rates = machine_rates(options.threads)
        record: dict[str, Any] = {
            "benchmark": "openvino",
            "command": "python -m bench.openvino_peer " + " ".join(sys.argv[1:]),
            **environment(),
            "openvino": version("openvino"),
            "geometry": vars(geometry),
            "results": [],
        }
        found = [Setting(past, 1, _SPAN, threads) for threads in options.threads for past in options.past]
        found += [Setting(0, new, 1, threads) for threads in options.threads for new in options.prompt]
        for setting in found:
            taking_part = [(c.name, c, setting) for c in contenders(decode=setting.new == 1)]
            result = measure(
                taking_part,
                geometry,
                seconds=options.seconds,
                ring_bytes=RING_BYTES,
                rates=rates,
                open_layer=open_layer,
            )
            record["results"].append(result)
            console.print(table(result))
            console.print(result["unavailable"] or "", highlight=False, markup=False)
            if options.record is not None:
                write_record(options.record / f"openvino-{geometry.name}.json", record)
    except DeltaLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
