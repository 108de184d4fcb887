"""A model of more than 4 GB of float32: time and peak memory of its export and of its conversions.

    python -m bench.big_model --record bench/records      # Llama-3.2-1B with random weights, about 6 minutes

Every step runs in a process of its own, which reports its peak of resident memory and its times; what it wrote is
deleted before the next one starts. The weights are random, which changes neither. The model is made once.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from bench.script import check_record_folder, refusals, script_parser, table_console
from deltallm_onnx.bench import write_record
from deltallm_onnx.bench.peak_memory import run_child
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.preflight import BESIDE_WEIGHTS
from deltallm_onnx.runtime.environment import environment
from deltallm_onnx.weights.formats import WeightName

#: Fields of transformers' LlamaConfig.
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "toy": {
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 16,
        "intermediate_size": 200,
        "vocab_size": 501,
        "max_position_embeddings": 130,
        "tie_word_embeddings": True,
    },
}
EXPORT = "export alone"
_FOLDER = Path("build/big-model")


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Measure every step, printing the table and saving the record as it grows."""
    model = options.folder / options.config
    if not (model / "model.safetensors").is_file():
        console.print(f"Writing a model with random weights to {model}")
        run_child("bench.big_model_child", {"make": str(model), "config": CONFIGS[options.config]})
    record: dict[str, Any] = {
        "benchmark": "big model",
        "command": "python -m bench.big_model " + " ".join(sys.argv[1:]),
        **environment(),
        "model": {"name": options.config, **CONFIGS[options.config]},
        "promised_bytes_beside_weights": BESIDE_WEIGHTS,
        "results": [],
    }
    steps: list[str | None] = [None, *options.weights]
    for number in range(options.rounds):
        for weights in steps:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                request = {"model": str(model), "out": str(Path(folder) / "model.onnx"), "weights": weights}
                measured = run_child("bench.big_model_child", request)
            name = EXPORT if weights is None else f"convert, {weights} weights"
            record["results"].append({"name": name, "round": number, **measured})
            console.print(f"{name}: {measured['seconds']:.1f} s")
            if options.record is not None:
                write_record(options.record / f"big-model-{options.config}.json", record)
    console.print(table(record))
    return record


def table(record: dict[str, Any]) -> Table:
    """The steps, each at its fastest, beside the export alone."""
    found = Table(title=f"{record['model']['name']}, {record['cpu']}")
    for column in ("step", "seconds", "of the export", "CPU seconds", "peak GB", "promised GB", "data GB", "error"):
        found.add_column(column, justify="left" if column == "step" else "right")
    fastest: dict[str, dict[str, Any]] = {}
    for row in record["results"]:
        if row["seconds"] < fastest.get(row["name"], {"seconds": float("inf")})["seconds"]:
            fastest[row["name"]] = row
    for name, row in fastest.items():
        error = row["relative_rms"]
        found.add_row(
            name,
            f"{row['seconds']:.1f}",
            f"{row['seconds'] / fastest[EXPORT]['seconds']:.2f}×",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_resident_bytes'] / 1e9:.2f}",
            f"{(row['float32_bytes'] + record['promised_bytes_beside_weights']) / 1e9:.2f}",
            f"{row['data_bytes'] / 1e9:.2f}",
            "" if error is None else f"{error:.2%}",
        )
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.big_model", __doc__)
    parser.add_argument("--config", choices=tuple(CONFIGS), default="Llama-3.2-1B")
    parser.add_argument("--weights", nargs="+", choices=get_args(WeightName), default=["float32", "int4"])
    parser.add_argument("--rounds", type=int, default=1, help="how often every step runs, in turn; the fastest counts")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="where the model is kept and written")
    parser.add_argument("--record", type=Path, metavar="DIR", help="write the record there, such as bench/records")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        raise DeltaLLMError(f"rounds is {options.rounds}: give 1 or more.")
    check_record_folder(options.record)
    options.folder.mkdir(parents=True, exist_ok=True)
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    with refusals():
        run(parse(arguments), table_console())


if __name__ == "__main__":
    main()
