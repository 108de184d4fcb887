"""Tokens per second inside onnxruntime-genai: a Llama-3.2-1B with random int4 weights before and after `rewrite`.

    python -m bench.genai_tokens --record bench/records

writes a genai folder (1.3 GB, under build/bench), rewrites it once per variant, reads a random prompt up to 1024 tokens
and then up to 4096 in each, and measures the tokens generated behind it, all variants interleaved in one process, on
one thread in thread CPU time and on all in wall time. Then it counts how many tokens are the same before and after
rewriting with θ = 0 and a float32 cache; for that, MatMulNBits computes in float32, because with activations rounded to
8 bits a last bit may become a step of 1/127. About 12 GB of memory and 8 GB of disk are needed; --only takes fewer
variants.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# It sends what is run to its maker, and keeps an identifier of the machine, unless this is set before it is loaded.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime_genai as og
from rich.console import Console
from rich.table import Table

import deltallm_onnx
from bench.genai_folder import write_genai_folder
from bench.llama import LLAMA_3_2_1B, TOY, LlamaConfig
from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx.bench import Spread, clock, interleave, quotients, write_record
from deltallm_onnx.bench.rounds import SPIN_SECONDS, clock_name
from deltallm_onnx.config import DeltaConfig, profile
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import ops_library_path
from deltallm_onnx.runtime.environment import environment

CONFIGS = {"Llama-3.2-1B": LLAMA_3_2_1B, "toy": TOY}
BEFORE = "GQA float32"
EXACT = "ours float32, θ = 0"
#: What the folder is rewritten with.
VARIANTS: Mapping[str, DeltaConfig] = {
    "ours int8": DeltaConfig(),
    "ours int4": DeltaConfig(cache_format="int4"),
    "ours float16": DeltaConfig(cache_format="float16"),
    EXACT: profile("exact"),
}
PASTS = (1024, 4096)
WARM_UP_STEPS = 2
SAME_PROMPT, SAME_TOKENS = 200, 64
REPETITION_PENALTY = 2.0
_FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"
_SEED = 20250730


class Text:
    """A text that grows in onnxruntime-genai, and how long that takes.

    Args:
        folder: with genai_config.json.
        length: tokens it will not exceed; also the rows of its caches.
        threads: intra-op threads.
        repetition_penalty: of the search, 1 for none.
    """

    def __init__(self, folder: Path, *, length: int, threads: int, repetition_penalty: float = 1.0) -> None:
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        model = og.Model(config)
        parameters = og.GeneratorParams(model)
        # min_length keeps the end-of-text token from being chosen
        search = {"max_length": length, "min_length": length, "repetition_penalty": repetition_penalty}
        parameters.set_search_options(do_sample=False, **search)
        self._generator = og.Generator(model, parameters)
        self._threads = threads
        self._now = clock(threads)

    @property
    def tokens(self) -> list[int]:
        """All of them, prompt included."""
        return [int(token) for token in self._generator.get_sequence(0)]

    @property
    def kv_bytes(self) -> int:
        """Bytes that onnxruntime-genai allocated for the keys and values of a layer."""
        return sum(int(self._generator.get_input(f"past_key_values.0.{role}").nbytes) for role in ("key", "value"))

    def read(self, tokens: npt.NDArray[np.int32]) -> float:
        """Append a prompt, or what follows the text so far; seconds."""
        if self._generator.token_count():
            self._generator.get_logits()  # runs the last generated token, which append_tokens leaves out
        began = self._now()
        self._generator.append_tokens(tokens)
        return self._now() - began

    def step(self) -> float:
        """Generate one token; seconds."""
        if self._threads > 1:
            time.sleep(SPIN_SECONDS)  # the threads of the variant before still spin on the cores
        began = self._now()
        self._generator.generate_next_token()
        return self._now() - began


def rewritten(source: Path, names: Sequence[str], length: int) -> dict[str, Path]:
    """The source folder and its rewritten forms, which replace those of an earlier run beside it.

    Args:
        source: with genai_config.json.
        names: of `VARIANTS`.
        length: tokens that int4 caches have room for.

    Raises:
        DeltaLLMError: as `deltallm_onnx.rewrite`.
    """
    folders = {BEFORE: source}
    for name in names:
        target = source.with_name(re.sub(r"[^a-z0-9]+", "-", name))
        remove(target)
        deltallm_onnx.rewrite(source, target, VARIANTS[name], context=length)
        folders[name] = target
    return folders


def remove(folder: Path) -> None:
    """Remove a folder that an earlier run wrote."""
    for path in folder.glob("*"):
        path.unlink()


def measure(folders: Mapping[str, Path], options: argparse.Namespace, threads: int) -> list[dict[str, Any]]:
    """Interleaved generation of all variants behind every past, JSON-ready."""
    random = np.random.default_rng(_SEED)
    config = CONFIGS[options.config]
    texts = {name: Text(path, length=room(options), threads=threads) for name, path in folders.items()}
    steps = WARM_UP_STEPS + options.steps
    results, length = [], 0
    for past in options.past:
        prompt = random.integers(3, config.vocabulary, past - length).astype(np.int32)
        prompt_seconds = {name: text.read(prompt) for name, text in texts.items()}
        load = os.getloadavg()[0]
        calls = {name: text.step for name, text in texts.items()}
        taken = interleave(calls, seconds=0, least_rounds=steps, most_rounds=steps)
        length = past + steps
        rows = []
        for name, own in taken.items():
            spread = Spread.of(own[WARM_UP_STEPS:])
            rows.append(
                {
                    "name": name,
                    "milliseconds": spread.scaled(1e3).to_dict(),
                    "tokens_per_second": float(f"{1 / spread.median:.4g}"),
                    "speedup": quotients(taken[BEFORE][WARM_UP_STEPS:], own[WARM_UP_STEPS:]).to_dict(),
                    "kv_bytes": config.layers * texts[name].kv_bytes,
                    "prompt_tokens_per_second": float(f"{len(prompt) / prompt_seconds[name]:.4g}"),
                }
            )
        results.append(
            {
                "past_tokens": past,
                "prompt_tokens": len(prompt),
                "threads": threads,
                "clock": clock_name(threads),
                "rounds": options.steps,
                "load_before": round(load, 2),
                "load_after": round(os.getloadavg()[0], 2),
                "contenders": rows,
            }
        )
    return results


def same_tokens(folders: Mapping[str, Path], config: LlamaConfig) -> dict[str, Any]:
    """Greedy tokens of the model before and after, JSON-ready.

    A random model soon says the same again and again, which would prove little: hence the penalty.
    """
    prompt = np.random.default_rng(_SEED + 1).integers(3, config.vocabulary, SAME_PROMPT).astype(np.int32)
    found = {}
    for name in (BEFORE, EXACT):
        length, threads = SAME_PROMPT + SAME_TOKENS, os.cpu_count() or 1
        text = Text(folders[name], length=length, threads=threads, repetition_penalty=REPETITION_PENALTY)
        text.read(prompt)
        for _ in range(SAME_TOKENS):
            text.step()
        found[name] = text.tokens[SAME_PROMPT:]
    pairs = zip(found[BEFORE], found[EXACT], strict=True)
    equal = next((at for at, (one, other) in enumerate(pairs) if one != other), SAME_TOKENS)
    return {
        "prompt_tokens": SAME_PROMPT,
        "new_tokens": SAME_TOKENS,
        "same_tokens": equal,
        "distinct_tokens": len(set(found[BEFORE])),
        "repetition_penalty": REPETITION_PENALTY,
        "weights": "MatMulNBits, 4 bits, blocks of 32, accuracy level 1",
    }


def room(options: argparse.Namespace) -> int:
    """Tokens of the longest text."""
    return max(*options.past, SAME_PROMPT + SAME_TOKENS) + WARM_UP_STEPS + int(options.steps)


def table(result: Mapping[str, Any]) -> Table:
    """A result for people."""
    title = f"past {result['past_tokens']}, threads {result['threads']}, {result['clock']}"
    shown = Table(title=f"{title}, {result['rounds']} tokens, load {result['load_before']}", title_justify="left")
    for name in ("variant", "tokens/s", "ms", "quartiles", "× before", "quartiles", "prompt tokens/s", "KV MiB"):
        shown.add_column(name, justify="left" if name == "variant" else "right", no_wrap=True)
    for row in result["contenders"]:
        own, ratio = row["milliseconds"], row["speedup"]
        shown.add_row(
            row["name"],
            f"{row['tokens_per_second']:.2f}",
            f"{own['median']:.2f}",
            f"{own['lower']:.2f}–{own['upper']:.2f}",
            f"{ratio['median']:.2f}",
            f"{ratio['lower']:.2f}–{ratio['upper']:.2f}",
            f"{row['prompt_tokens_per_second']:.1f}",
            f"{row['kv_bytes'] / 2**20:.1f}",
        )
    return shown


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Write and rewrite the models, measure everything, and return the record; it is written after every setting."""
    config = CONFIGS[options.config]
    about = environment()
    about["versions"]["onnxruntime-genai"] = version("onnxruntime-genai")
    record: dict[str, Any] = {
        "benchmark": "genai tokens",
        "command": "python -m bench.genai_tokens " + " ".join(sys.argv[1:]),
        **about,
        "library_sha256": hashlib.sha256(ops_library_path().read_bytes()).hexdigest(),
        "model": {"name": options.config, **{k: v for k, v in vars(config).items() if k != "geometry"}},
        "geometry": vars(config.geometry),
        "weights": "MatMulNBits, 4 bits, blocks of 32, accuracy level 4; embedding float16; random",
        "configurations": {name: VARIANTS[name].to_dict() for name in options.only},
        "results": [],
        "same_tokens": None,
    }

    def save() -> None:
        if options.record is not None:
            write_record(options.record / f"genai-tokens-{options.config}.json", record)

    folder = options.folder / f"genai-{options.config}"
    console.print(f"Writing the models to {folder}")
    folders = rewritten(write_genai_folder(config, folder / "source", accuracy_level=4), options.only, room(options))
    for threads in options.threads:
        for result in measure(folders, options, threads):
            record["results"].append(result)
            console.print(table(result))
            save()
        gc.collect()
    for name in options.only:
        remove(folders[name])
    source = write_genai_folder(config, folder / "source", accuracy_level=1)
    record["same_tokens"] = same_tokens(rewritten(source, [EXACT], room(options)), config)
    console.print("{same_tokens} of {new_tokens} tokens are the same at θ = 0".format_map(record["same_tokens"]))
    save()
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.genai_tokens", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="Llama-3.2-1B")
    parser.add_argument("--past", type=int, nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--steps", type=int, default=32, help="generated tokens per setting")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=tuple(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where models are written")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    options.past = sorted(options.past or [past for past in PASTS if past < CONFIGS[options.config].positions // 2])
    options.past = options.past or [300]
    if min([*options.past, *options.threads, options.steps]) < 1:
        raise DeltaLLMError("Tokens, threads and steps are counted from 1: give positive numbers.")
    between = min((b - a for a, b in zip(options.past, options.past[1:], strict=False)), default=options.past[0])
    if between <= WARM_UP_STEPS + options.steps and len(options.past) > 1:
        raise DeltaLLMError(
            f"--past {options.past}: each must be more than {WARM_UP_STEPS + options.steps} behind the last."
        )
    if room(options) > CONFIGS[options.config].positions:
        raise DeltaLLMError(f"past is {options.past[-1]}: the model has {CONFIGS[options.config].positions} positions.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        options = parse(arguments)
        ops_library_path()
        run(options, table_console())


if __name__ == "__main__":
    main()
