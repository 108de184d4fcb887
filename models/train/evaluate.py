"""Measure what the demo model must show, and write it as JSON.

    python models/train/evaluate.py --model models/demo --text models/demo/validation.txt --out evaluation.json

needs only committed files. With `--books DIR` the whole held-out books of the manifest are measured instead of the
text. All arithmetic is float32. A window is `<s>` and the next 2047 tokens of one book; windows do not overlap and do
not cross books (excerpts in a text file are separated by two blank lines).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from corpus import EXCERPT_SEPARATOR, books_of, read_book
from environment import restart_with_settings
from errors import UserError, run_command
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

CONTEXT = 2048  # tokens per window
LOCAL = 64  # tokens a query sees in the window-only measurement, itself included
BUCKETS = ((1, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048))  # position of the predicted token
BOS_ID, FIRST_TEXT_ID = 0, 2


def local_mask(size: int, window: int, sinks: int) -> torch.Tensor:
    """Additive mask [1, 1, size, size]: query i sees key j ≤ i if j > i − window or j < sinks."""
    query, key = torch.arange(size).unsqueeze(1), torch.arange(size).unsqueeze(0)
    seen = (key <= query) & ((key > query - window) | (key < sinks))
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def windows_of(tokenizer: Tokenizer, texts: Iterator[str], context: int) -> torch.Tensor:
    """Non-overlapping windows [count, context], each `<s>` and context − 1 consecutive tokens of one text."""
    rows = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        size = context - 1
        rows += [[BOS_ID, *ids[start : start + size]] for start in range(0, len(ids) - size + 1, size)]
    if not rows:
        raise UserError(f"the text has no window of {context} tokens; give a longer one")
    return torch.tensor(rows)


def position_losses(model: Any, windows_NS: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Loss in nats of predicting position 1 … S−1 of every window, [N, S − 1]."""
    found = []
    for window in windows_NS:
        with torch.no_grad():
            logits = model(window.unsqueeze(0), attention_mask=mask, use_cache=False).logits[0, :-1].float()
        found.append(torch.nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(found)


def bucket_table(losses: torch.Tensor) -> dict[str, float]:
    """Mean loss per range of positions (half-open); column c of `losses` predicts position c + 1."""
    return {f"{a}-{b}": losses[:, a - 1 : b - 1].mean().item() for a, b in BUCKETS if a <= losses.shape[1]}


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Mean over windows and its standard error."""
    return values.mean().item(), (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else math.nan


def far_context(model: Any, windows: torch.Tensor) -> dict[str, Any]:
    """Perplexity with full attention and with the last 64 tokens only (with and without the first token)."""
    size = windows.shape[1]
    full = position_losses(model, windows, None)
    result: dict[str, Any] = {
        "windows": len(windows),
        "tokens": full.numel(),
        "context": size,
        "perplexity_full": math.exp(full.mean()),
        "loss_full": full.mean().item(),
        "loss_by_position_full": bucket_table(full),
    }
    for name, sinks in (("window64_and_first_token", 1), ("window64", 0)):
        local = position_losses(model, windows, local_mask(size, LOCAL, sinks))
        gain, error = mean_and_error((local - full).mean(1))
        result[f"perplexity_{name}"] = math.exp(local.mean())
        result[f"fall_{name}"] = 1 - math.exp(full.mean() - local.mean())
        result[f"gain_nats_{name}"] = gain
        result[f"gain_nats_{name}_standard_error"] = error
        result[f"loss_by_position_{name}"] = bucket_table(local)
    if size >= BUCKETS[-1][1]:
        drop, error = mean_and_error(full[:, 127:255].mean(1) - full[:, 1023:].mean(1))
        result["drop_128_256_to_1024_2048"] = drop
        result["drop_128_256_to_1024_2048_standard_error"] = error
    return result


def induction(model: Any, vocab_size: int, count: int, length: int, seed: int) -> dict[str, Any]:
    """`<s>` and a uniformly random sequence twice: loss of the first and of the second occurrence.

    The second occurrence's first token is left out of `loss_second`, since nothing announces the repetition.
    """
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(FIRST_TEXT_ID, vocab_size, (count, length), generator=generator)
    windows = torch.cat([torch.full((count, 1), BOS_ID), once, once], 1)
    losses = position_losses(model, windows, None)
    return {
        "sequences": count,
        "length": length,
        "seed": seed,
        "loss_first": losses[:, :length].mean().item(),
        "loss_second": losses[:, length + 1 :].mean().item(),
        "loss_second_with_its_first_token": losses[:, length:].mean().item(),
        "uniform_loss": math.log(vocab_size - FIRST_TEXT_ID),
    }


def sample(model: Any, tokenizer: Tokenizer, prompt: str, tokens: int, seed: int) -> dict[str, Any]:
    """Text generated after `prompt` by sampling (temperature 0.7, top-p 0.9)."""
    torch.manual_seed(seed)
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **limits)
    return {"prompt": prompt, "seed": seed, "tokens": tokens, "text": tokenizer.decode(out[0].tolist())}


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face folder, e.g. models/demo")
    parser.add_argument("--text", type=Path, help="text file of excerpts separated by two blank lines")
    parser.add_argument("--books", type=Path, help="folder of books: measure the manifest's whole validation books")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--max-windows", type=int, default=0, help="0: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="It was late in the evening when the old man")
    parser.add_argument("--sample-tokens", type=int, default=200)
    args = parser.parse_args()
    if (args.text is None) == (args.books is None):
        raise UserError("give either --text FILE or --books DIR")
    if not (args.model / "config.json").is_file():
        raise UserError(f"{args.model} holds no config.json; give a Hugging Face folder such as models/demo")
    torch.set_num_threads(args.threads)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    if args.text is not None:
        if not args.text.is_file():
            raise UserError(f"no text at {args.text}")
        texts = args.text.read_text(encoding="utf-8").split(EXCERPT_SEPARATOR)
    else:
        texts = [read_book(args.books, book) for book in books_of("validation")]
    windows = windows_of(tokenizer, iter(texts), args.context)
    if args.max_windows:
        windows = windows[:: max(1, len(windows) // args.max_windows)][: args.max_windows]
    result = {
        "measured_on": ("books, evenly spread" if args.max_windows else "whole books")
        if args.books
        else args.text.name,
        "far_context": far_context(model, windows),
        "induction": induction(model, model.config.vocab_size, 64, 64, 0),
        "sample": sample(model, tokenizer, args.prompt, args.sample_tokens, 0),
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    restart_with_settings()
    run_command(main)
