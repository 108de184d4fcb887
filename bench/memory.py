"""Memory and speed of one int4 model under every setting of the session, each in a process of its own.

    python -m bench.memory --record bench/records

writes a Llama of 0.3 billion random int4 weights (under build/bench), reads a prompt, decodes, and reports the peak of
resident memory since before the model was opened and tokens per second, in CPU time with one thread, beside what
`deltallm_onnx.memory.plan` says. Settings take turns, --rounds times: the smallest peak and the fastest time count.
--config Llama-3.2-1B takes 1.4 GB on disk and up to 4 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contenders import Contender, delta, group_query
from bench.geometry import Geometry
from bench.llama import LLAMA_3_2_1B, TOY, LlamaConfig, write_model, write_weights
from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx.bench import run_child, write_record
from deltallm_onnx.bench.rounds import clock_name
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.memory.plan import plan_memory
from deltallm_onnx.runtime.environment import environment
from deltallm_onnx.runtime.session_settings import LOW_MEMORY, SessionSettings

#: Every size of 0.3 billion weights differs from the others; the embedding is float16, the rest int4.
LLAMA_300M = LlamaConfig(
    geometry=Geometry("Llama-0.3B", 16, 4, 64),
    hidden_size=1024,
    layers=12,
    intermediate_size=3584,
    vocabulary=64000,
    positions=8192,
)
CONFIGS = {"Llama-0.3B": LLAMA_300M, "Llama-3.2-1B": LLAMA_3_2_1B, "toy": TOY}
CACHES: Mapping[str, Contender] = {
    contender.name: contender
    for contender in (group_query("float32"), *(delta(cache) for cache in ("float32", "int8", "int4")))
}
_DEFAULTS = SessionSettings()
SETTINGS: Mapping[str, SessionSettings] = {
    "defaults": _DEFAULTS,
    "no arena": dataclasses.replace(_DEFAULTS, arena=False),
    "no pattern": dataclasses.replace(_DEFAULTS, memory_pattern=False),
    "no spinning": dataclasses.replace(_DEFAULTS, spinning=False),
    "no prepacking": dataclasses.replace(_DEFAULTS, prepacking=False),
    "low memory": LOW_MEMORY,
}
_FOLDER = Path(__file__).resolve().parents[1] / "build" / "bench"


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure, print the table and save the record."""
    config = CONFIGS[options.config]
    folder = options.folder / f"memory-{options.config}"
    weights = write_weights(config, folder)
    # The graph is the same for all settings: which one is opened is the child's matter.
    models = {name: write_model(config, CACHES[name], folder) for name in options.caches}
    record: dict[str, Any] = {
        "benchmark": "memory",
        "command": "python -m bench.memory " + " ".join(sys.argv[1:]),
        **environment(),
        "model": {"name": options.config, "weights_bytes": weights.stat().st_size, **dataclasses.asdict(config)},
        "context_tokens": options.context,
        "prompt_chunk": options.chunk,
        "decoded_tokens": options.steps,
        "threads": options.threads,
        "clock": clock_name(options.threads),
        "plans": {
            name: plan_memory(model, options.context, prompt_chunk=options.chunk).to_dict()
            for name, model in models.items()
        },
        "results": [],
    }
    for number in range(options.rounds):
        for cache, settings in _runs(options):
            request = {
                "model": str(models[cache]),
                "settings": dataclasses.asdict(SETTINGS[settings]),
                "vocabulary": config.vocabulary,
                "context": options.context,
                "chunk": options.chunk,
                "steps": options.steps,
                "threads": options.threads,
            }
            measured = run_child("bench.memory_child", request)
            record["results"].append({"cache": cache, "settings": settings, "round": number, **measured})
            if options.record is not None:
                write_record(options.record / f"memory-{options.config}-chunk{options.chunk}.json", record)
    console.print(table(record))
    return record


def _runs(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Every setting with the first cache, and every other cache with the defaults and with all that saves memory."""
    first, *others = options.caches
    pairs = [(first, settings) for settings in options.settings]
    return pairs + [
        (cache, settings) for cache in others for settings in ("defaults", "low memory") if settings in options.settings
    ]


def table(record: Mapping[str, Any]) -> Table:
    """A row per cache and setting: the smallest of its peaks, the fastest of its times."""
    title = f"{record['model']['name']}, {record['context_tokens']} tokens, {record['prompt_chunk']} per call"
    found = Table(title=f"{title}; {record['cpu']}, {record['threads']} threads")
    for column in ("cache", "settings", "peak MB", "then MB", "plan MB", "prompt tokens/s", "decode tokens/s"):
        found.add_column(column, justify="left" if column in ("cache", "settings") else "right")
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in record["results"]:
        rounds.setdefault((row["cache"], row["settings"]), []).append(row)
    for (cache, settings), rows in rounds.items():
        found.add_row(
            cache,
            settings,
            f"{min(row['peak_bytes'] for row in rows) / 1e6:.0f}",
            f"{min(row['resident_bytes'] for row in rows) / 1e6:.0f}",
            f"{record['plans'][cache]['total_bytes'] / 1e6:.0f}",
            f"{max(row['prompt_tokens_per_second'] for row in rows):.1f}",
            f"{max(row['decode_tokens_per_second'] for row in rows):.1f}",
        )
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.memory", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="Llama-0.3B")
    parser.add_argument("--caches", nargs="+", choices=tuple(CACHES), default=["ours int8", "ours int4", "GQA float32"])
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--context", type=int, default=1024, help="tokens in the cache at the end")
    parser.add_argument("--chunk", type=int, default=128, help="prompt tokens per call")
    parser.add_argument("--steps", type=int, default=16, help="decoded tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where the model is kept")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    for name in ("chunk", "steps", "threads", "rounds"):
        if getattr(options, name) < 1:
            raise DeltaLLMError(f"{name} is {getattr(options, name)}: give 1 or more.")
    if options.context <= options.steps:
        raise DeltaLLMError(f"context is {options.context}: give more tokens than the {options.steps} decoded ones.")
    check_record_folder(options.record)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        run(parse(arguments), table_console())


if __name__ == "__main__":
    main()
