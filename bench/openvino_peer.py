"""The same layer in OpenVINO: an optional peer, run by hand.

    pip install --no-deps --target build/openvino-package openvino
    PYTHONPATH=build/openvino-package python -m bench.openvino_peer --record bench/records

Decode steps and prompts of ours, of GroupQueryAttention and of OpenVINO's paged attention with 16-bit and u8 caches, in
float32 and bfloat16 arithmetic, interleaved in one process as in `bench.attention`. Their times at several lengths give
the two numbers that say what a longer context costs: nanoseconds per past token of a decode step, and per query and key
of a prompt (`bench.slopes`).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from rich.console import Console

from bench.attention import DECODE_SPAN, measure, table
from bench.contenders import DELTA_ATTRIBUTES, PEERS, THRESHOLD, Contender, delta, prefill
from bench.geometry import GEOMETRIES, Geometry
from bench.layer import RING_BYTES, Layer, Setting
from bench.openvino_paged import OPENVINO, PagedLayer, openvino_version
from bench.roofline import machine_rates
from bench.script import check_record_folder, refusals, script_parser, table_console
from bench.tables import decode_costs, prompt_costs
from deltallm_onnx.bench import write_record
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import ops_library_path
from deltallm_onnx.runtime.environment import environment

PASTS = (1024, 4096, 16384)
PROMPTS = (512, 1024, 2048, 4096)
#: An OpenVINO output this far from float32 attention is not that of the same attention. Its u8 caches reach 8e-3.
_LARGEST_ERROR = 0.03


def openvino_contender(cache: str, arithmetic: str) -> Contender:
    """OpenVINO with a cache precision to ask for ("f16", "bf16", "u8") and an arithmetic ("float32", "bfloat16")."""
    return Contender(f"OpenVINO {cache} cache, {arithmetic}", OPENVINO, cache, arithmetic=(arithmetic, arithmetic))


#: With 16 bits in the cache OpenVINO takes the type of its arithmetic: f16 beside bfloat16 becomes bf16 anyway.
OPENVINO_CONTENDERS = tuple(
    openvino_contender(*pair)
    for pair in (("f16", "float32"), ("bf16", "bfloat16"), ("u8", "float32"), ("u8", "bfloat16"))
)


def contenders(*, decode: bool) -> list[Contender]:
    """Who takes part in a decode step, or in a prompt; ours are compared with OpenVINO's quickest settings."""
    if decode:
        own, quickest = [delta(cache) for cache in ("float32", "float16", "int8", "int4")], OPENVINO_CONTENDERS[0]
    else:
        pairs = (("float32", "float32"), ("float32", "bfloat16"), ("int8", "bfloat16"), ("int8", "int8"))
        own, quickest = [prefill(*pair) for pair in pairs], OPENVINO_CONTENDERS[3]
    against = (dataclasses.replace(contender, against=quickest.name) for contender in own)
    return [PEERS[0], *OPENVINO_CONTENDERS, *against]


def open_layer(contender: Contender, geometry: Geometry, setting: Setting, *, ring_bytes: int) -> Any:
    """A layer of whoever runs it."""
    kind = PagedLayer if contender.operator == OPENVINO else Layer
    return kind(contender, geometry, setting, ring_bytes=ring_bytes)


def check_errors(result: Mapping[str, Any]) -> None:
    """Refuse to publish times of another computation.

    Raises:
        DeltaLLMError: where the output of OpenVINO is far from GroupQueryAttention's over the same rows.
    """
    for row in result["contenders"]:
        if row["name"].startswith("OpenVINO") and not row["relative_error"] <= _LARGEST_ERROR:
            raise DeltaLLMError(
                f"{row['name']} is {row['relative_error']:.1e} away from float32 attention at {result['past_tokens']} "
                f"+ {result['new_tokens']} tokens: its model in bench/openvino_paged.py does not fit this OpenVINO."
            )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.openvino_peer", __doc__)
    parser.add_argument("--geometry", choices=tuple(GEOMETRIES), default="Llama-3.2-1B")
    parser.add_argument("--past", type=int, nargs="*", default=list(PASTS))
    parser.add_argument("--prompt", type=int, nargs="*", default=list(PROMPTS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=12.0, help="of rounds, per setting")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    if min([*options.past, DECODE_SPAN]) <= DECODE_SPAN // 2:
        raise DeltaLLMError(f"past is {min(options.past)}: decode is measured from {DECODE_SPAN // 2 + 1} tokens on.")
    if min([*options.prompt, 2]) < 2:
        raise DeltaLLMError(f"A prompt of {min(options.prompt)} tokens is none: give at least 2.")
    if min(options.threads) < 1:
        raise DeltaLLMError("Threads are counted from 1: give positive numbers.")
    check_record_folder(options.record)
    return options


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure every setting, print it, and write the record after each."""
    geometry = GEOMETRIES[options.geometry]
    rates = machine_rates(options.threads)
    record: dict[str, Any] = {
        "benchmark": "openvino",
        "command": "python -m bench.openvino_peer " + " ".join(sys.argv[1:]),
        **environment(),
        "openvino": openvino_version(),
        "openvino_clock": "process CPU time for one thread, wall time for several",
        "library_sha256": hashlib.sha256(ops_library_path().read_bytes()).hexdigest(),
        "machine_rates": rates,
        "geometry": vars(geometry),
        "delta": {**DELTA_ATTRIBUTES, "threshold": THRESHOLD},
        "ring_bytes": RING_BYTES,
        "results": [],
    }
    found = [Setting(past, 1, DECODE_SPAN, threads) for threads in options.threads for past in options.past]
    found += [Setting(0, new, 0, threads) for threads in options.threads for new in options.prompt]
    for setting in found:
        result = measure(
            [(contender.name, contender, setting) for contender in contenders(decode=setting.new == 1)],
            geometry,
            seconds=options.seconds,
            ring_bytes=RING_BYTES,
            rates=rates,
            open_layer=open_layer,
        )
        check_errors(result)
        record["results"].append(result)
        console.print(table(result))
        for name, reason in result["unavailable"].items():
            console.print(f"Not measured: {name}: {reason}", highlight=False, markup=False)
        if options.record is not None:
            write_record(options.record / f"openvino-{geometry.name}.json", record)
    for threads in options.threads:
        for costs, lengths in ((decode_costs, options.past), (prompt_costs, options.prompt)):
            if len(set(lengths)) > 1:
                print(costs(record, threads))


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        options = parse(arguments)
        openvino_version()  # refused in a sentence, not as four contenders that are unavailable
        ops_library_path()  # the same
        ort.set_default_logger_severity(4)
        run(options, table_console())


if __name__ == "__main__":
    main()
