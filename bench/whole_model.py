"""A whole Llama-3.2-1B with random int4 weights, decoding: DeltaAttention against GroupQueryAttention.

    python -m bench.whole_model --record bench/records

writes one file of weights (1.3 GB, under build/bench) and a model per variant that differs in its attention only, and
measures decode steps at 1024, 4096 and 16384 past tokens, all variants interleaved in one process, on one thread in
thread CPU time and on all in wall time; then the peak memory of each variant in a process of its own. The caches are
filled without reading a prompt. About 12 GB of memory are needed; --only takes fewer variants.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.contenders import PEERS, Contender, delta
from bench.filled_cache import FilledCache
from bench.llama import LLAMA_3_2_1B, TOY, LlamaConfig, write_model, write_weights
from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx.bench import Spread, clock, fastest, interleave, quotients, run_child, write_record
from deltallm_onnx.bench.rounds import SPIN_SECONDS, clock_name
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, ops_library_path
from deltallm_onnx.runtime.environment import environment

CONFIGS = {"Llama-3.2-1B": LLAMA_3_2_1B, "toy": TOY}
VARIANTS: Mapping[str, Contender] = {
    contender.name: contender for contender in (*PEERS, *(delta(c) for c in ("float32", "float16", "int8", "int4")))
}
PASTS = (1024, 4096, 16384)
WARM_UP_STEPS = 2
_FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"


class Variant:
    """A model that decodes random tokens behind a past it never read."""

    def __init__(
        self, model: DecoderModel, attention: Contender, config: LlamaConfig, *, past: int, steps: int, threads: int
    ) -> None:
        self._model = model
        self._threads = threads
        self._now = clock(threads)
        self._token = np.array([[config.vocabulary // 3]], np.int64)
        self.cache = FilledCache(model.signature.caches, attention, config.geometry, past=past, steps=steps)

    def step(self) -> float:
        """Seconds of one decode step."""
        if self._threads > 1:
            time.sleep(SPIN_SECONDS)  # the threads of the variant before still spin on the cores
        began = self._now()
        self._model.step(self._token, self.cache)
        return self._now() - began


def measure(
    models: Mapping[str, DecoderModel], config: LlamaConfig, *, past: int, steps: int, threads: int
) -> dict[str, Any]:
    """Interleaved decode steps of all variants at one past, JSON-ready."""
    room = WARM_UP_STEPS + steps
    variants = {
        name: Variant(model, VARIANTS[name], config, past=past, steps=room, threads=threads)
        for name, model in models.items()
    }
    load = os.getloadavg()[0]
    calls = {name: variant.step for name, variant in variants.items()}
    taken = interleave(calls, seconds=0, least_rounds=room, most_rounds=room)
    times = {name: own[WARM_UP_STEPS:] for name, own in taken.items()}
    peers = [peer.name for peer in PEERS if peer.name in times]
    peer = fastest(times, peers) if peers else None
    rows = []
    for name, own in times.items():
        spread = Spread.of(own)
        others = sorted({other for other in (peer, "GQA float32") if other in times and other != name})
        rows.append(
            {
                "name": name,
                "cache_mode": "updated in place",
                "milliseconds": spread.scaled(1e3).to_dict(),
                "tokens_per_second": float(f"{1 / spread.median:.4g}"),
                "kv_bytes": variants[name].cache.bytes_allocated,
                "fastest_peer": peer,
                "speedups": {other: quotients(times[other], own).to_dict() for other in others},
            }
        )
    return {
        "past_tokens": past,
        "threads": threads,
        "clock": clock_name(threads),
        "rounds": steps,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "contenders": rows,
    }


def table(result: Mapping[str, Any]) -> Table:
    """A result for people."""
    title = f"past {result['past_tokens']}, threads {result['threads']}, {result['clock']}"
    shown = Table(title=f"{title}, {result['rounds']} steps, load {result['load_before']}", title_justify="left")
    for name in ("variant", "tokens/s", "ms", "quartiles", "× fastest GQA", "quartiles", "KV MiB"):
        shown.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for row in result["contenders"]:
        own, ratio = row["milliseconds"], row["speedups"].get(row["fastest_peer"])
        shown.add_row(
            row["name"],
            f"{row['tokens_per_second']:.2f}",
            f"{own['median']:.2f}",
            f"{own['lower']:.2f}–{own['upper']:.2f}",
            "–" if ratio is None else f"{ratio['median']:.2f}",
            "–" if ratio is None else f"{ratio['lower']:.2f}–{ratio['upper']:.2f}",
            f"{row['kv_bytes'] / 2**20:.1f}",
        )
    return shown


def memory(paths: Mapping[str, Path], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak resident memory of every variant at every past, each in a process of its own."""
    found = []
    for past in options.past:
        for name, path in paths.items():
            request = {"model": str(path), "variant": name, "config": options.config, "past": past}
            found.append({"name": name, "past_tokens": past, **run_child("bench.whole_model_child", request)})
    return found


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Write the models, measure everything, and return the record; it is written after every setting."""
    config = CONFIGS[options.config]
    folder = options.folder / options.config
    record: dict[str, Any] = {
        "benchmark": "whole model",
        "command": "python -m bench.whole_model " + " ".join(sys.argv[1:]),
        **environment(),
        "library_sha256": hashlib.sha256(ops_library_path().read_bytes()).hexdigest(),
        "model": {"name": options.config, **{k: v for k, v in vars(config).items() if k != "geometry"}},
        "geometry": vars(config.geometry),
        "weights": "MatMulNBits, 4 bits, blocks of 32, accuracy level 4; embedding float16",
        "results": [],
        "memory": [],
    }

    def save() -> None:
        if options.record is not None:
            write_record(options.record / f"whole-model-{options.config}.json", record)

    console.print(f"Writing the models to {folder}")
    write_weights(config, folder)
    paths = {name: write_model(config, VARIANTS[name], folder) for name in options.only}
    for threads in options.threads:
        models = {name: DecoderModel(path, threads=threads) for name, path in paths.items()}
        for past in options.past:
            result = measure(models, config, past=past, steps=options.steps, threads=threads)
            record["results"].append(result)
            console.print(table(result))
            save()
        models.clear()
        gc.collect()
    if options.memory:
        record["memory"] = memory(paths, options)
        for row in record["memory"]:
            amounts = {
                "peak": row["peak_resident_bytes"],
                "at the end": row["resident_bytes"],
                "caches": row["kv_bytes"],
            }
            text = ", ".join(f"{name} {amount / 2**20:.1f} MiB" for name, amount in amounts.items() if amount)
            console.print(f"{row['name']}, {row['past_tokens']} tokens: {text}")
        save()
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.whole_model", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="Llama-3.2-1B")
    parser.add_argument("--past", type=int, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--steps", type=int, default=32, help="decode steps per setting")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where models are written")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    config = CONFIGS[options.config]
    options.past = options.past or [past for past in PASTS if past < config.positions // 2] or [300]
    if min([*options.past, *options.threads, options.steps]) < 1:
        raise DeltaLLMError("Tokens, threads and steps are counted from 1: give positive numbers.")
    if max(options.past) + WARM_UP_STEPS + options.steps > config.positions:
        raise DeltaLLMError(f"past is {max(options.past)}: the model has {config.positions} positions.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        options = parse(arguments)
        ops_library_path()
        run(options, table_console())


if __name__ == "__main__":
    main()
