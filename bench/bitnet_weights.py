"""BitNet b1.58 2B4T with random weights: its ternary matrices in 2 bits, in 4 bits and in float32.

    python -m bench.bitnet_weights --record bench/records

writes checkpoints of the model and of one with fewer layers (1.2 and 0.8 GB, under build/bench), converts each form in
a process of its own, whose peak memory and time are taken, and measures prompts and decode steps of all forms of a
size, interleaved in one process, on one thread in thread CPU time and on all in wall time; then the peak memory of
running each. Float32 is measured with fewer layers only (--float-layers): the whole model would take 8.4 GB and as much
again while it is opened. The embedding, which is the output projection too, is float32 or int8. About 16 GB of memory
and 14 GB of disk are needed; --only takes fewer forms.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.bitnet import BITNET_2B, BitNetConfig, write_checkpoint
from bench.geometry import Geometry
from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx import convert, profile
from deltallm_onnx.bench import Spread, clock, interleave, peak_resident_bytes, quotients, run_child, write_record
from deltallm_onnx.bench.rounds import SPIN_SECONDS, clock_name
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, ops_library_path
from deltallm_onnx.runtime.environment import environment
from deltallm_onnx.weights.formats import WeightFormat


@dataclasses.dataclass(frozen=True)
class Form:
    """What `convert` is asked for.

    Attributes:
        weights: the storage of what is not ternary; "float32" keeps the ternary matrices in float32 too.
        ternary_bits: per ternary weight.
    """

    weights: WeightFormat | None = None
    ternary_bits: int = 2

    @property
    def is_float(self) -> bool:
        """All weights are float32."""
        return self.weights is not None and self.weights.name == "float32"


#: The first is what all others are compared with.
FORMS = {
    "2 bits": Form(),
    "4 bits": Form(ternary_bits=4),
    "float32": Form(weights=WeightFormat("float32")),
    "2 bits, output int8": Form(weights=WeightFormat("int8")),
    "4 bits, output int8": Form(weights=WeightFormat("int8"), ternary_bits=4),
}
#: BitNet's shape at a size that is written and run in a second.
TOY = BitNetConfig(
    geometry=Geometry("toy", 6, 2, 26),
    hidden_size=156,
    layers=2,
    intermediate_size=308,
    vocabulary=517,
    positions=1024,
)
CONFIGS = {"BitNet-2B": BITNET_2B, "toy": TOY}
WARM_UP_STEPS = 2
_FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"
_SEED = 11


class Decoder:
    """A model behind a prompt it has read."""

    def __init__(self, model: DecoderModel, prompt: np.ndarray[Any, Any], steps: int, threads: int) -> None:
        self._model, self._prompt, self._steps, self._threads = model, prompt, steps, threads
        self._now = clock(threads)
        self._cache = self._fresh_cache()

    def _fresh_cache(self) -> Any:
        return self._model.new_cache(limit=self._prompt.shape[1] + self._steps)

    def prompt(self) -> float:
        """Seconds to read the prompt, into a new cache."""
        self._cache = self._fresh_cache()
        return self._timed(self._prompt)

    def step(self) -> float:
        """Seconds of one decode step."""
        return self._timed(self._prompt[:, :1])

    def _timed(self, tokens: np.ndarray[Any, Any]) -> float:
        if self._threads > 1:
            time.sleep(SPIN_SECONDS)  # the threads of the form before still spin on the cores
        began = self._now()
        self._model.step(tokens, self._cache)
        return self._now() - began


def measure(models: Mapping[str, DecoderModel], options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Interleaved prompts and decode steps of all forms of one size, JSON-ready."""
    vocabulary = CONFIGS[options.config].vocabulary
    prompt = np.random.default_rng(_SEED).integers(0, vocabulary, (1, options.prompt))
    steps = WARM_UP_STEPS + options.steps
    decoders = {name: Decoder(model, prompt, steps, threads) for name, model in models.items()}
    load = os.getloadavg()[0]
    prompts = {name: decoder.prompt for name, decoder in decoders.items()}
    decodes = {name: decoder.step for name, decoder in decoders.items()}
    read = interleave(prompts, seconds=0, least_rounds=options.prompts, most_rounds=options.prompts)
    stepped = interleave(decodes, seconds=0, least_rounds=steps, most_rounds=steps)
    stepped = {name: times[WARM_UP_STEPS:] for name, times in stepped.items()}
    base = next(iter(models))
    rows = []
    for name in models:
        milliseconds, reading = Spread.of(stepped[name]).scaled(1e3), Spread.of(read[name]).scaled(1e3)
        rows.append(
            {
                "name": name,
                "milliseconds": milliseconds.to_dict(),
                "tokens_per_second": float(f"{1e3 / milliseconds.median:.4g}"),
                "prompt_milliseconds": reading.to_dict(),
                "prompt_tokens_per_second": float(f"{options.prompt * 1e3 / reading.median:.4g}"),
                "compared_with": base,
                "step_ratio": quotients(stepped[name], stepped[base]).to_dict(),
                "prompt_ratio": quotients(read[name], read[base]).to_dict(),
            }
        )
    return {
        "threads": threads,
        "clock": clock_name(threads),
        "prompt_tokens": options.prompt,
        "prompts": options.prompts,
        "steps": options.steps,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "forms": rows,
    }


def table(layers: int, result: Mapping[str, Any]) -> Table:
    """A result for people."""
    title = f"{layers} layers, threads {result['threads']}, {result['clock']}, {result['steps']} steps"
    shown = Table(title=f"{title}, load {result['load_before']}", title_justify="left")
    base = result["forms"][0]["name"]
    for name in ("form", "tokens/s", "ms", "quartiles", f"× {base}", "prompt tokens/s", f"× {base}"):
        shown.add_column(name, justify="left" if name == "form" else "right", no_wrap=True)
    for row in result["forms"]:
        own = row["milliseconds"]
        shown.add_row(
            row["name"],
            f"{row['tokens_per_second']:.2f}",
            f"{own['median']:.1f}",
            f"{own['lower']:.1f}–{own['upper']:.1f}",
            f"{row['step_ratio']['median']:.2f}",
            f"{row['prompt_tokens_per_second']:.1f}",
            f"{row['prompt_ratio']['median']:.2f}",
        )
    return shown


def child(request: Mapping[str, Any]) -> dict[str, Any]:
    """What happens in a process of its own, to see its memory: a conversion, or a prompt and a few steps."""
    path = Path(request["model"])
    if request["action"] == "convert":
        form = FORMS[request["form"]]
        began = time.perf_counter()
        report = convert(
            request["checkpoint"], path, profile("exact"), weights=form.weights, ternary_bits=form.ternary_bits
        )
        taken = {"seconds": round(time.perf_counter() - began, 1), "bytes_written": report.bytes_written}
    else:
        decoder = Decoder(DecoderModel(path, threads=1), np.zeros((1, request["prompt"]), np.int64), WARM_UP_STEPS, 1)
        decoder.prompt()
        decoder.step()
        taken = {}
    return {**taken, "peak_resident_bytes": peak_resident_bytes()}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Write and convert the models, measure everything, and return the record; it is written after every setting."""
    whole = CONFIGS[options.config]
    record: dict[str, Any] = {
        "benchmark": "BitNet weights",
        "command": "python -m bench.bitnet_weights " + " ".join(sys.argv[1:]),
        **environment(),
        "model": {"name": options.config, **{k: v for k, v in vars(whole).items() if k != "geometry"}},
        "geometry": vars(whole.geometry),
        "forms": {
            name: {"weights": None if form.weights is None else str(form.weights), "ternary_bits": form.ternary_bits}
            for name, form in FORMS.items()
            if name in options.only
        },
        "conversions": [],
        "results": [],
        "memory": [],
    }

    def save() -> None:
        if options.record is not None:
            write_record(options.record / f"bitnet-weights-{options.config}.json", record)

    for layers in options.layers:
        config = dataclasses.replace(whole, layers=layers)
        folder = options.folder / f"{options.config}-{layers}"
        console.print(f"Writing a checkpoint of {layers} layers to {folder}")
        write_checkpoint(config, folder)
        paths = {}
        for name in options.only:
            if FORMS[name].is_float and layers > options.float_layers:
                continue
            paths[name] = folder / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
            request = {"action": "convert", "form": name, "checkpoint": str(folder), "model": str(paths[name])}
            done = {"name": name, "layers": layers, **run_child("bench.bitnet_weights_child", request)}
            record["conversions"].append(done)
            sizes = f"{done['bytes_written'] / 1e9:.2f} GB, peak {done['peak_resident_bytes'] / 1e9:.2f} GB"
            console.print(f"Converted {layers} layers to {name}: {done['seconds']} s, {sizes}")
            save()
        for threads in options.threads:
            models = {name: DecoderModel(path, threads=threads) for name, path in paths.items()}
            result = measure(models, options, threads)
            record["results"].append({"layers": layers, **result})
            console.print(table(layers, result))
            models.clear()
            gc.collect()
            save()
        for name, path in paths.items():
            request = {"action": "run", "model": str(path), "prompt": options.prompt}
            row = {"name": name, "layers": layers, **run_child("bench.bitnet_weights_child", request)}
            record["memory"].append(row)
            console.print(f"{name}, {layers} layers: peak {row['peak_resident_bytes'] / 1e9:.2f} GB while running")
            save()
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.bitnet_weights", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="BitNet-2B")
    parser.add_argument("--layers", type=int, nargs="+", help="sizes to measure [default: a quarter, and the whole]")
    parser.add_argument("--float-layers", type=int, help="most layers in float32 [default: a quarter]")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--prompts", type=int, default=5, help="prompts per setting")
    parser.add_argument("--steps", type=int, default=24, help="decode steps per setting")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=tuple(FORMS), default=list(FORMS))
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where models are written")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    config = CONFIGS[options.config]
    quarter = max(1, config.layers // 4)
    options.float_layers = quarter if options.float_layers is None else options.float_layers
    options.layers = options.layers or [quarter, config.layers]
    if (
        min([*options.layers, options.float_layers, options.prompt, options.prompts, options.steps, *options.threads])
        < 1
    ):
        raise DeltaLLMError("Layers, tokens, prompts, steps and threads are counted from 1: give positive numbers.")
    if max(options.layers) > config.layers:
        raise DeltaLLMError(f"--layers is {max(options.layers)}: the model has {config.layers}.")
    if options.prompt + WARM_UP_STEPS + options.steps > config.positions:
        raise DeltaLLMError(f"A prompt of {options.prompt} tokens is too long: the model has {config.positions}.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        options = parse(arguments)
        ops_library_path()
        run(options, table_console())


if __name__ == "__main__":
    main()
