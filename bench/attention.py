"""One attention layer: DeltaAttention against ONNX Runtime's GroupQueryAttention with float32, int8 and int4 caches.

    python -m bench.attention decode                         # contexts 256 … 32768, Llama-3.2-1B, one and two threads
    python -m bench.attention prompt chunk --geometry all
    python -m bench.attention decode --isa avx2 --past 4096

Every contender updates its caches in place, in buffers on huge pages, over a ring of caches larger than the processor's
own. Every round runs each contender for some milliseconds, in a new order. One thread is measured in thread CPU time,
which other processes hardly change, several in wall time. Ratios are medians over rounds of the quotient within one
round, with quartiles. A record per suite and geometry goes to the folder given by --record.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from bench.contenders import DECODE, DELTA_ATTRIBUTES, OVERHEAD, PEERS, PREFILL, SCALING, THRESHOLD, Contender
from bench.geometry import GEOMETRIES, Geometry
from bench.layer import RING_BYTES, Layer, Setting
from bench.roofline import machine_rates, work_of
from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx.bench import Spread, fastest, interleave, quotients, write_record
from deltallm_onnx.bench.rounds import clock_name
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import ops_library_path
from deltallm_onnx.runtime.environment import environment

CONTEXTS = (256, 1024, 4096, 16384, 32768)
PROMPTS = (1, 2, 4, 8, 16, 128, 512, 2048, 4096)
CHUNK_PAST, CHUNK_TOKENS = 4096, 512
#: Decode steps on a cache before it is put back: one whole block of an int4 cache, so sealing counts.
DECODE_SPAN = 128
QUICK_RING_BYTES = 8 << 20

SUITES: Mapping[str, Sequence[Contender]] = {
    "decode": DECODE,
    "prompt": PREFILL,
    "chunk": PREFILL,
    "overhead": OVERHEAD,
    "scaling": SCALING,
}

Rates = Mapping[str, Mapping[str, float | None]]


def settings(suite: str, options: argparse.Namespace) -> list[Setting]:
    """What a suite measures, in the order of measuring; "scaling" takes its threads from `scaling_entries`."""
    found = []
    for threads in options.threads if suite != "scaling" else [max(options.threads)]:
        if suite in ("decode", "scaling"):
            found += [Setting(past, 1, DECODE_SPAN, threads, wall=suite == "scaling") for past in options.past]
        elif suite == "overhead":
            found += [Setting(past, 1, DECODE_SPAN, threads) for past in options.past if past >= DECODE_SPAN * 4]
        elif suite == "prompt":
            found += [Setting(0, new, 0, threads) for new in options.prompt]
        else:
            found.append(Setting(options.chunk[0], options.chunk[1], 1, threads))
    return found


def entries(suite: str, setting: Setting, names: Sequence[str] | None) -> list[tuple[str, Contender, Setting]]:
    """Who takes part, under which name and at which setting."""
    chosen = [c for c in SUITES[suite] if names is None or c.name in names]
    if suite != "scaling":
        return [(contender.name, contender, setting) for contender in chosen]
    counts = sorted({1, setting.threads})
    alone = Setting(setting.past, setting.new, setting.span, 1, wall=True)
    return [
        (contender.name if n > 1 else f"{contender.name}, one thread", contender, setting if n > 1 else alone)
        for contender in chosen
        for n in counts
    ]


def measure(
    taking_part: Iterable[tuple[str, Contender, Setting]],
    geometry: Geometry,
    *,
    seconds: float,
    ring_bytes: int,
    rates: Rates | None,
    open_layer: Callable[..., Layer] = Layer,
) -> dict[str, Any]:
    """Interleaved rounds of the contenders at one setting, JSON-ready.

    Args:
        taking_part: their names in the result, what they are, and what each runs on.
        geometry: of the layer.
        seconds: of rounds.
        ring_bytes: bytes of caches that each goes round.
        rates: of the machine, by number of threads.
        open_layer: makes a `Layer`, or something with its interface.
    """
    layers: dict[str, Layer] = {}
    unavailable: dict[str, str] = {}
    setting = None
    for name, contender, own in taking_part:
        setting = own
        try:
            layers[name] = open_layer(contender, geometry, own, ring_bytes=ring_bytes)
        except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions share no base class
            unavailable[name] = " ".join(str(error).split())[:300]
    if setting is None or not layers:
        raise DeltaLLMError(f"No contender can run: {unavailable or 'none was chosen, see --only'}.")
    load = os.getloadavg()[0]
    times = interleave({name: layer.turn for name, layer in layers.items()}, seconds=seconds)
    result = {
        "past_tokens": setting.past,
        "new_tokens": setting.new,
        "threads": setting.threads,
        "clock": "wall time" if setting.wall else clock_name(setting.threads),
        "rounds": len(next(iter(times.values()))),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "contenders": rows(layers, times, rates),
        "unavailable": unavailable,
    }
    layers.clear()
    gc.collect()  # the caches of the next setting need the room
    return result


def rows(layers: Mapping[str, Layer], times: Mapping[str, list[float]], rates: Rates | None) -> list[dict[str, Any]]:
    """One JSON-ready row per contender."""
    peers = [peer.name for peer in PEERS if peer.name in times]
    peer = fastest(times, peers) if peers else None
    probes = {name: layer.probe() for name, layer in layers.items()}
    found = []
    for name, layer in layers.items():
        own = Spread.of(times[name]).scaled(1e6)
        output, statistics = probes[name]
        work = work_of(layer, statistics)
        machine = None if rates is None else rates.get(str(layer.setting.threads))
        least = None if machine is None else work.least_seconds(machine, layer.contender.arithmetic)
        row: dict[str, Any] = {
            "name": name,
            "cache": layer.contender.cache,
            "cache_mode": "updated in place",
            "microseconds": own.to_dict(),
            "bytes": round(work.bytes),
            "operations": round(sum(work.operations)),
            "least_microseconds": None if least is None else round(least * 1e6, 2),
            "share_of_roofline": None if least is None else round(least * 1e6 / own.median, 3),
            "relative_error": None if layer.contender.half_held else relative_error(output, probes),
            "speedups": {},
        }
        against = {peer, "GQA float32", layer.contender.against, f"{name}, one thread"} - {None, name}
        for other in sorted(str(other) for other in against if other in times):
            row["speedups"][other] = quotients(times[other], times[name]).to_dict()
        row["fastest_peer"] = peer
        found.append(row)
    return found


def relative_error(output: npt.NDArray[np.float32], probes: Mapping[str, tuple[Any, Any]]) -> float | None:
    """‖output − exact‖ / ‖exact‖, both over the same keys and values; exact is GQA's float32, if that takes part."""
    if "GQA float32" not in probes:
        return None
    exact = probes["GQA float32"][0].astype(np.float64)
    return float(f"{np.linalg.norm(output - exact) / np.linalg.norm(exact):.2e}")


def table(result: Mapping[str, Any]) -> Table:
    """A result for people."""
    title = f"past {result['past_tokens']}, new {result['new_tokens']}, threads {result['threads']}, {result['clock']}"
    shown = Table(title=f"{title}, {result['rounds']} rounds, load {result['load_before']}", title_justify="left")
    for name in (
        "contender",
        "µs",
        "quartiles",
        "× fastest GQA",
        "quartiles",
        "least µs",
        "roofline",
        "error",
        "× other",
    ):
        shown.add_column(name, justify="left" if name in ("contender", "× other") else "right", no_wrap=True)
    for row in result["contenders"]:
        own, speedups = row["microseconds"], dict(row["speedups"])
        peer = speedups.pop(row["fastest_peer"], None)
        shown.add_row(
            row["name"],
            f"{own['median']:.1f}",
            f"{own['lower']:.1f}–{own['upper']:.1f}",
            "–" if peer is None else f"{peer['median']:.2f}",
            "–" if peer is None else f"{peer['lower']:.2f}–{peer['upper']:.2f}",
            "–" if row["least_microseconds"] is None else f"{row['least_microseconds']:.1f}",
            "–" if row["share_of_roofline"] is None else f"{row['share_of_roofline']:.0%}",
            "–" if row["relative_error"] is None else f"{row['relative_error']:.0e}",
            "; ".join(f"{name} {ratio['median']:.2f}" for name, ratio in speedups.items() if name != "GQA float32"),
        )
    return shown


def record_path(folder: Path, suite: str, geometry: Geometry) -> Path:
    """Where the record of a suite goes; a forced instruction set is part of the name."""
    isa = os.environ.get("DELTALLM_ISA")
    return folder / f"attention-{suite}-{geometry.name}{f'-{isa}' if isa else ''}.json"


def run(suite: str, geometry: Geometry, options: argparse.Namespace, rates: Rates | None, console: Console) -> None:
    """Measure one suite on one geometry, print it, and write its record after every setting."""
    ring_bytes = QUICK_RING_BYTES if options.quick else RING_BYTES
    console.print(f"[bold]{suite}, {geometry.name}[/bold]")
    record: dict[str, Any] = {
        "benchmark": "attention",
        "suite": suite,
        "command": "python -m bench.attention " + " ".join(sys.argv[1:]),
        **environment(),
        "library_sha256": hashlib.sha256(ops_library_path().read_bytes()).hexdigest(),
        "machine_rates": rates,
        "geometry": vars(geometry),
        "delta": {**DELTA_ATTRIBUTES, "threshold": THRESHOLD},
        "ring_bytes": ring_bytes,
        "results": [],
    }
    for setting in settings(suite, options):
        result = measure(
            entries(suite, setting, options.only),
            geometry,
            seconds=options.seconds,
            ring_bytes=ring_bytes,
            rates=rates,
        )
        record["results"].append(result)
        console.print(table(result))
        for reason in sorted(set(result["unavailable"].values())):
            names = [name for name, own in result["unavailable"].items() if own == reason]
            console.print(f"Not measured: {'; '.join(names)}: {reason}", highlight=False, markup=False)
        if options.record is not None:
            write_record(record_path(options.record, suite, geometry), record)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.attention", __doc__)
    parser.add_argument("suites", nargs="+", choices=tuple(SUITES), help="what to measure")
    parser.add_argument("--geometry", nargs="+", default=["Llama-3.2-1B"], choices=("all", *GEOMETRIES))
    parser.add_argument("--past", type=int, nargs="+", help="decode, scaling, overhead")
    parser.add_argument("--prompt", type=int, nargs="+", help="tokens of a prompt")
    parser.add_argument("--chunk", type=int, nargs=2, metavar=("PAST", "NEW"))
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders, by their names in the tables")
    parser.add_argument("--isa", help="force the instruction set of our kernels (DELTALLM_ISA)")
    parser.add_argument("--seconds", type=float, help="of rounds, per setting [default: 12]")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write records there, such as bench/records")
    parser.add_argument("--quick", action="store_true", help="small settings, to see that everything runs")
    options = parser.parse_args(arguments)
    if "all" in options.geometry:
        options.geometry = list(GEOMETRIES)
    options.past = options.past or ([700] if options.quick else list(CONTEXTS))
    options.prompt = options.prompt or ([3, 70] if options.quick else list(PROMPTS))
    options.chunk = options.chunk or ([300, 70] if options.quick else [CHUNK_PAST, CHUNK_TOKENS])
    options.seconds = options.seconds if options.seconds is not None else 0.5 if options.quick else 12.0
    if min([*options.past, *options.prompt, *options.chunk, *options.threads]) < 1:
        raise DeltaLLMError("Tokens and threads are counted from 1: give positive numbers.")
    if min(options.past) <= DECODE_SPAN // 2:
        raise DeltaLLMError(f"past is {min(options.past)}: decode is measured from {DECODE_SPAN // 2 + 1} tokens on.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        options = parse(arguments)
        if options.isa:
            os.environ["DELTALLM_ISA"] = options.isa
        ops_library_path()  # refused in a sentence, not as fourteen contenders that are unavailable
        ort.set_default_logger_severity(4)
        rates = machine_rates(sorted({1, *options.threads}))
        console = table_console()
        for name in options.geometry:
            for suite in options.suites:
                run(suite, GEOMETRIES[name], options, rates, console)


if __name__ == "__main__":
    main()
