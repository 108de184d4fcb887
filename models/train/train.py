"""Train the demo model.

    python models/train/train.py --out RUN --steps N

reads `RUN/train.npy` and `RUN/validation.npy` (see tokenizer.py), writes `RUN/checkpoint.pt` and `RUN/log.jsonl`, and
goes on from the checkpoint if there is one. The same seed gives the same losses, interrupted or not (with as many
workers).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from attention import choose_attention
from batches import BOS_ID, WindowSource, load_tokens
from checkpoint import NAME, load_weights, read_checkpoint, save_checkpoint
from environment import restart_with_settings
from errors import UserError, run_command
from loss import tied_cross_entropy
from model import SIZES, build_model
from plan import Plan
from transformers import LlamaForCausalLM
from workers import Workers

MATRIX_LR, OTHER_LR = 0.02, 3e-3
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Log:
    """Appends one JSON object per line to a file; also shows it unless it is a plain step."""

    path: Path

    def write(self, event: str, **values: Any) -> None:
        """Append one record."""
        line = json.dumps({"event": event, "time": time.strftime("%H:%M:%S"), **values})
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        if event != "step" or values["step"] % 10 == 0:
            print(line, flush=True)


class StopRequest:
    """Set by SIGTERM: the step under way is finished and saved."""

    def __init__(self) -> None:
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.ask)

    def ask(self, *_: object) -> None:
        """Remember the request."""
        self.asked = True


def make_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embed" not in n)]
    return [
        torch.optim.Muon(inner, lr=MATRIX_LR, weight_decay=0.05, momentum=0.95),
        torch.optim.AdamW(other, lr=OTHER_LR, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def batch_loss(
    model: LlamaForCausalLM, inputs_BS: torch.Tensor, targets_BS: torch.Tensor, precision: torch.dtype, denominator: int
) -> torch.Tensor:
    """Loss of one micro-batch, as its share of `denominator` targets."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden_BSD = model.model(inputs_BS, use_cache=False).last_hidden_state
    hidden_ND = hidden_BSD.flatten(0, 1).to(precision)
    return tied_cross_entropy(hidden_ND, model.lm_head.weight, targets_BS.flatten(), denominator)


def train_step(
    workers: Workers,
    optimizers: list[torch.optim.Optimizer],
    source: WindowSource,
    *,
    plan: Plan,
    step: int,
    precision: torch.dtype,
) -> float:
    """One optimiser step; returns the loss in nats per counted token before it."""
    context = plan.context_at(step)
    inputs, targets = source.batch(step, plan.window_offset(step), plan.batch_tokens // context, context)
    counted = int((targets >= 0).sum())
    rows = plan.micro_tokens // context

    def loss_of(model: LlamaForCausalLM, number: int) -> torch.Tensor:
        part = slice(number * rows, (number + 1) * rows)
        return batch_loss(model, torch.from_numpy(inputs[part]), torch.from_numpy(targets[part]), precision, counted)

    for model in workers.models:
        choose_attention(model, context)
    total = workers.accumulate(len(inputs) // rows, loss_of)
    torch.nn.utils.clip_grad_norm_(workers.models[0].parameters(), 1.0)
    for optimizer, peak in zip(optimizers, (MATRIX_LR, OTHER_LR), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * plan.lr_factor(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return total


def validation_loss(model: LlamaForCausalLM, run: Path, context: int, windows: int, precision: torch.dtype) -> float:
    """Mean loss over `windows` evenly spread windows of the validation books, each starting with `<s>`."""
    tokens = load_tokens(run / "validation.npy")
    stride = max(1, (len(tokens) - context - 1) // windows)
    choose_attention(model, context)
    total = 0.0
    for index in range(windows):
        window = torch.tensor(tokens[index * stride : index * stride + context + 1].astype("int64"))
        if len(window) < context + 1:
            raise UserError(f"{run / 'validation.npy'} holds {len(tokens)} tokens; needs more than {context}")
        inputs, targets = window[:-1].clone().unsqueeze(0), window[1:].unsqueeze(0)
        inputs[0, 0] = BOS_ID
        with torch.no_grad():
            total += batch_loss(model, inputs, targets, precision, context).item()
    return total / windows


def run_training(args: argparse.Namespace) -> None:
    """Train to the end of the plan, or to `--stop-after`, from the checkpoint or from scratch."""
    plan = Plan(
        steps=args.steps,
        batch_tokens=args.batch_tokens,
        micro_tokens=args.micro_tokens,
        context=args.context,
        long_context=args.long_context,
        warmup=args.warmup,
        decay=args.decay,
        long=args.long,
    )
    plan.check()
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give at least 1, at most one per core")
    torch.set_num_threads(1)  # per worker
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a guard against bugs that would cost time here
    precision = PRECISIONS[args.precision]
    model = build_model(args.size, args.seed)
    limit = model.config.max_position_embeddings
    if plan.long_context > limit:
        raise UserError(f"--long-context is {plan.long_context}; the size {args.size!r} has {limit} positions")
    optimizers = make_optimizers(model)
    workers = Workers(model, args.workers)
    source = WindowSource(
        load_tokens(args.out / "train.npy"), model.config.vocab_size, args.seed, args.recall, args.random
    )
    log = Log(args.out / "log.jsonl")
    done = tokens = 0
    if (args.out / NAME).is_file():
        state = read_checkpoint(args.out)
        if (state["size"], state["seed"]) != (args.size, args.seed):
            raise UserError(
                f"{args.out / NAME} was made with size {state['size']} and seed {state['seed']}; "
                "give the same ones or another --out"
            )
        load_weights(model, state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done, tokens = state["step"], state["tokens"]
    parameters = sum(p.numel() for p in model.parameters())
    log.write(
        "start", step=done, plan=asdict(plan), seed=args.seed, recall=args.recall, random=args.random,
        precision=args.precision, workers=args.workers, parameters=parameters,
        torch=torch.__version__, load=os.getloadavg()[0],
    )  # fmt: skip
    last = min(plan.steps, args.stop_after or plan.steps)
    saved_at = time.monotonic()
    stop = StopRequest()
    for step in range(done, last):
        begin = time.monotonic()
        loss = train_step(workers, optimizers, source, plan=plan, step=step, precision=precision)
        seconds = time.monotonic() - begin
        tokens += plan.batch_tokens
        log.write(
            "step", step=step + 1, loss=loss, lr=round(plan.lr_factor(step), 5), context=plan.context_at(step),
            tokens=tokens, seconds=round(seconds, 3), rate=round(plan.batch_tokens / seconds),
        )  # fmt: skip
        if (step + 1) % args.validate_every == 0 or step + 1 == plan.steps:
            value = validation_loss(model, args.out, plan.long_context, args.validation_windows, precision)
            log.write("validation", step=step + 1, loss=value, context=plan.long_context)
        if time.monotonic() - saved_at > args.checkpoint_seconds or stop.asked or step + 1 == last:
            save_checkpoint(
                args.out,
                step=step + 1,
                tokens=tokens,
                size=args.size,
                seed=args.seed,
                model=model,
                optimizers=optimizers,
            )
            saved_at = time.monotonic()
        if stop.asked:
            last = step + 1
            break
    log.write("end", step=max(done, last), of=plan.steps)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="run folder with the token arrays")
    parser.add_argument("--steps", type=int, required=True, help="length of the whole plan; may be changed on resume")
    parser.add_argument("--stop-after", type=int, default=0, help="end after this step with a checkpoint (0: never)")
    parser.add_argument("--size", choices=sorted(SIZES), default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="threads, each with its own micro-batches")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="bfloat16")
    parser.add_argument("--recall", type=float, default=0.4, help="share of windows with a repeated span")
    parser.add_argument("--random", type=float, default=0.5, help="share of them with a random span")
    parser.add_argument("--batch-tokens", type=int, default=Plan.batch_tokens)
    parser.add_argument("--micro-tokens", type=int, default=Plan.micro_tokens)
    parser.add_argument("--context", type=int, default=Plan.context)
    parser.add_argument("--long-context", type=int, default=Plan.long_context)
    parser.add_argument("--warmup", type=int, default=Plan.warmup, help="steps")
    parser.add_argument("--decay", type=float, default=Plan.decay, help="share of the steps, at the end")
    parser.add_argument("--long", type=float, default=Plan.long, help="share of the steps at --long-context")
    parser.add_argument("--validate-every", type=int, default=100, help="steps")
    parser.add_argument("--validation-windows", type=int, default=8)
    parser.add_argument("--checkpoint-seconds", type=float, default=150.0)
    args = parser.parse_args()
    if not args.out.is_dir():
        raise UserError(f"no run folder {args.out}; make it with models/train/tokenizer.py --out {args.out}")
    run_training(args)


if __name__ == "__main__":
    restart_with_settings()
    run_command(main)
