"""Instructions per decoded token on ARM64: our attention and GroupQueryAttention's, counted under qemu.

    make arm64 && python -m bench.arm64_counts --record bench/records

One layer of Llama-3.2-1B in ARM64's own ONNX Runtime, one thread, on an emulated processor without and on one with dot
products. qemu writes down every block of instructions before it executes it; `count_instructions.cc` adds them up
between the begin and the end of a call. All that the call executes is counted, ONNX Runtime's part of it too.

Counts are not cycles. They tell neither how long an instruction takes nor how many are executed at once, nor what
caches and memory cost: they say how much work a processor is given, and nothing about time.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from bench.arm64_counts_table import per_token_table
from bench.contenders import DECODE, DELTA_ATTRIBUTES, THRESHOLD, Contender, capacity_for, one_node_model
from bench.geometry import GEOMETRIES, Geometry
from bench.instruction_counts import KNOWN, LIBRARY, PROCESSORS, QEMU, Interval, check_arm64, count
from bench.past import filled_caches, rows
from bench.script import check_record_folder, refusals, script_parser
from deltallm_onnx.bench import write_record
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import register
from deltallm_onnx.runtime.environment import environment

PASTS = (1024, 4096)
NOTE = (
    "Instructions executed by an emulated processor, not cycles: they say nothing about time, caches or memory. "
    "'instructions' is the median of the calls behind the first."
)
#: Rows of a sealed block: so many tokens are decoded from one sealing to the next.
_SEALED_EVERY = 128
_SEED = 7


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer that decodes, and the folder of its files.

    Attributes:
        contender: what attends.
        past: tokens in its caches before the first call.
        folder: its files, as `arm64_layers.cc` reads them.
        output: float32 [1, 1, Hq·D], what the last call gives on this machine.
    """

    contender: Contender
    past: int
    folder: Path
    output: npt.NDArray[np.float32]

    def row(self, intervals: Sequence[Interval]) -> dict[str, Any]:
        """What its calls took, JSON-ready."""
        counts = [interval.instructions for interval in intervals]
        ordinary = int(median(counts[1:]))
        nearest = min(intervals[1:], key=lambda interval: abs(interval.instructions - ordinary))
        found = np.fromfile(self.folder / "output.bin", np.float32).reshape(self.output.shape)
        return {
            "name": self.contender.name,
            "cache": self.contender.cache,
            "past_tokens": self.past,
            "instructions": ordinary,
            "parts": dict(nearest.parts),
            "calls": counts,
            "difference_from_this_machine": float(f"{_difference(found, self.output):.2e}"),
        }


def calls_of(contender: Contender) -> int:
    """Calls that are counted: the first, which does some things once, and others.

    Behind 1024 and 4096 tokens the fifth fills a block of an int4 cache and seals it. Half held, a row may join the one
    before it or not. GroupQueryAttention does the same every time, and takes longest to count.
    """
    if not contender.ours:
        return 2
    return 4 if contender.half_held else 6 if contender.cache == "int4" else 3


def _difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def write_case(contender: Contender, geometry: Geometry, past: int, folder: Path) -> Case:
    """Write a layer's model and inputs, and decode with it on this machine."""
    folder.mkdir()
    model = one_node_model(contender, geometry)
    (folder / "model.onnx").write_bytes(model)
    widths = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}
    arrays: dict[str, npt.NDArray[Any]] = {
        name: rows(1, heads * geometry.head_size, seed)
        for seed, (name, heads) in enumerate(widths.items(), start=_SEED)
    }
    calls = calls_of(contender)
    caches = filled_caches(contender, geometry, past, capacity_for(contender, geometry, past + calls))
    arrays |= dict(zip(("past_key", "past_value"), caches, strict=True))
    for name, array in arrays.items():
        array.tofile(folder / f"{name}.bin")
    return Case(contender, past, folder, _decoded_here(model, arrays, past, calls))


def _decoded_here(
    model: bytes, arrays: Mapping[str, npt.NDArray[Any]], past: int, calls: int
) -> npt.NDArray[np.float32]:
    """The output of the last call; the caches among the arrays are updated."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    register(options)
    binding = (session := ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])).io_binding()
    binding.bind_output("output")
    for name, array in arrays.items():
        value = ort.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past_"):
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
    for total in range(past + 1, past + calls + 1):
        binding.bind_cpu_input("seqlens_k", np.array([total - 1], np.int32))
        binding.bind_cpu_input("total", np.array([total], np.int32))
        session.run_with_iobinding(binding)
    output: npt.NDArray[np.float32] = binding.get_outputs()[0].numpy()
    return output


def measure(processor: str, cases: Sequence[Case], folder: Path) -> dict[str, Any]:
    """Count the calls of every layer on a processor, JSON-ready."""
    plan = folder / f"{processor}.plan"
    plan.write_text(
        "".join(f"{case.folder} {case.past} {calls_of(case.contender)}\n" for case in cases), encoding="utf-8"
    )
    for case in cases:
        for left in ("output.bin", "refusal.txt"):
            (case.folder / left).unlink(missing_ok=True)
    intervals = count(processor, plan)
    known, calls = intervals[: len(KNOWN)], intervals[len(KNOWN) :]
    layers, refused = [], {}
    for case in cases:
        refusal = case.folder / "refusal.txt"
        if refusal.is_file():
            refused[case.contender.name] = " ".join(refusal.read_text(encoding="utf-8").split())[:300]
        else:
            own = calls_of(case.contender)
            layers.append(case.row(calls[:own]))
            calls = calls[own:]
    if calls:
        raise DeltaLLMError(f"{len(calls)} calls too many were counted on {processor}: a layer was refused midway.")
    return {
        "processor": processor,
        "known": [{"instructions": n, "counted": i.instructions} for n, i in zip(KNOWN, known, strict=True)],
        "layers": layers,
        "unavailable": refused,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the tables and save the record."""
    check_arm64()
    geometry = GEOMETRIES[options.geometry]
    version = subprocess.run([str(QEMU), "--version"], capture_output=True, text=True, check=True)  # noqa: S603  # this project's
    record: dict[str, Any] = {
        "benchmark": "arm64_counts",
        "note": NOTE,
        "command": "python -m bench.arm64_counts " + " ".join(sys.argv[1:]),
        **environment(),
        "emulator": version.stdout.splitlines()[0],
        "library_sha256": hashlib.sha256(LIBRARY.read_bytes()).hexdigest(),
        "geometry": vars(geometry),
        "delta": {**DELTA_ATTRIBUTES, "threshold": THRESHOLD},
        "threads": 1,
        "sealed_every": _SEALED_EVERY,
        "results": [],
    }
    chosen = [contender for contender in DECODE if options.only is None or contender.name in options.only]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cases = [
            write_case(contender, geometry, past, folder / f"{number}-{past}")
            for past in options.past
            for number, contender in enumerate(chosen)
        ]
        for processor in options.processor:
            record["results"].append(measure(processor, cases, folder))
            if options.record is not None:
                write_record(options.record / f"arm64-counts-{geometry.name}.json", record)
    for result in record["results"]:
        print(f"{result['processor']}\n\n{per_token_table(record, result['processor'])}")
        for name, refusal in result["unavailable"].items():
            print(f"Not counted: {name}: {refusal}")
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.arm64_counts", __doc__)
    parser.add_argument("--geometry", choices=tuple(GEOMETRIES), default="Llama-3.2-1B")
    parser.add_argument("--past", type=int, nargs="+", default=list(PASTS), help="tokens in the cache")
    parser.add_argument("--processor", nargs="+", choices=PROCESSORS, default=list(PROCESSORS))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[contender.name for contender in DECODE])
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    if min(options.past) < 1:
        raise DeltaLLMError(f"past is {min(options.past)}: give 1 token or more.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        run(parse(arguments))


if __name__ == "__main__":
    main()
