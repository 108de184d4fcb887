"""Turn a checkpoint into the Hugging Face folder `models/demo`, in two calls with the measurement between them.

    python models/train/publish.py model --run RUN --demo models/demo --books DIR
    python models/train/evaluate.py …            (twice, see README.md)
    python models/train/publish.py card --run RUN --demo models/demo

The first writes the weights (float16), the configuration, the tokenizer and the two held-out texts; the second the
model card, with its numbers from `evaluation_text.json`, `evaluation_books.json` and `log.jsonl` in the run folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from card import write_card, write_curve
from checkpoint import load_weights, read_checkpoint
from corpus import EXCERPT_SEPARATOR, books_of, read_book, spread_excerpts
from errors import UserError, run_command
from model import build_model
from safetensors.torch import save_file

TEXT_BYTES = 200_000  # of each held-out text
SIZE_LIMIT = 24 * 10**6  # bytes of the whole folder
# `rope_theta` is added beside `rope_parameters` for readers that know only the older name.
CONFIG_FIELDS = (
    "attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size",
    "initializer_range", "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps",
    "rope_parameters", "tie_word_embeddings", "use_cache", "vocab_size",
)  # fmt: skip


def write_weights(run: Path, demo: Path) -> int:
    """Write config.json, generation_config.json and model.safetensors; returns the step they are from."""
    state = read_checkpoint(run)
    model = build_model(state["size"], state["seed"])
    load_weights(model, state["model"])
    # The output projection is the embedding (tied): it is stored once, under the embedding's name.
    weights = {name: value.to(torch.float16).contiguous() for name, value in state["model"].items()}
    save_file(weights, demo / "model.safetensors", metadata={"format": "pt"})
    (demo / "model.safetensors").chmod(0o644)
    config = {name: getattr(model.config, name) for name in CONFIG_FIELDS}
    write_json(
        demo / "config.json",
        config | {"architectures": ["LlamaForCausalLM"], "dtype": "float16", "rope_theta": 10000.0},
    )
    write_json(
        demo / "generation_config.json",
        {
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.9,
            "max_new_tokens": 200,
        },
    )
    step: int = state["step"]
    return step


def write_tokenizer(run: Path, demo: Path, context: int) -> None:
    """Copy tokenizer.json and name its special tokens in tokenizer_config.json."""
    source = run / "tokenizer.json"
    if not source.is_file():
        raise UserError(f"no tokenizer at {source}; run models/train/tokenizer.py first")
    shutil.copyfile(source, demo / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    write_json(demo / "tokenizer_config.json", settings)


def write_texts(books: Path, demo: Path) -> None:
    """Write validation.txt, the beginnings of the held-out books, and calibration.txt, from all over its books.

    A calibration has to see what the rest of a book is like: at their beginnings, held keys cost up to a fifth less.
    """
    for split, count in (("validation", 1), ("calibration", 3)):
        chosen = books_of(split)
        size = TEXT_BYTES // len(chosen)
        parts = [part for book in chosen for part in spread_excerpts(read_book(books, book), size, count)]
        (demo / f"{split}.txt").write_text(EXCERPT_SEPARATOR.join(parts) + "\n", encoding="utf-8")


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON object with sorted keys."""
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("model", "write weights, tokenizer and texts"), ("card", "write README.md and curve.tsv")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--run", type=Path, required=True, help="run folder with checkpoint.pt and log.jsonl")
        command.add_argument("--demo", type=Path, required=True, help="folder to write, e.g. models/demo")
        if name == "model":
            command.add_argument("--books", type=Path, required=True, help="folder with one .txt per manifest row")
        else:
            command.add_argument("--remark", default="", help="a paragraph for the training section")
            command.add_argument("--preliminary", action="store_true", help="say that training is not finished")
    args = parser.parse_args()
    args.demo.mkdir(parents=True, exist_ok=True)
    if args.command == "model":
        step = write_weights(args.run, args.demo)
        write_tokenizer(args.run, args.demo, 2048)
        write_texts(args.books, args.demo)
        print(f"wrote {args.demo} from step {step}")
    else:
        write_curve(args.run, args.demo / "curve.tsv")
        for name in ("evaluation_text.json", "evaluation_books.json"):
            shutil.copyfile(args.run / name, args.demo / name)
        write_card(args.run, args.demo / "README.md", args.preliminary, args.remark)
    size = sum(path.stat().st_size for path in args.demo.rglob("*") if path.is_file())
    if size > SIZE_LIMIT:
        raise UserError(f"{args.demo} holds {size} bytes; the limit is {SIZE_LIMIT}")


if __name__ == "__main__":
    run_command(main)
