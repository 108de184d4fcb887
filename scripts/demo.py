"""Convert a model, run it dense and with delta attention on stock ONNX Runtime, and print the difference.

    python scripts/demo.py --model models/demo

Thresholds are found as `deltallm-onnx convert` finds them: by a short calibration on the bundled text, for --budget.
Perplexity and divergence are measured with held keys active: over whole windows, with the model opened so that prompts
are read as decoding reads (docs/spec.md section 3). Speed and bytes are those of the model as converted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.default import DEFAULT_BUDGET, ShortCalibration
from deltallm_onnx.calibration.request import request_for
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.config import PROFILE_NAMES, DeltaConfig, profile
from deltallm_onnx.convert import rewrite
from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import Score, compare, delta_form, text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime import (
    DecoderModel,
    Generation,
    Sampler,
    TextTokenizer,
    context_length,
    generate,
    ops_library_path,
)
from deltallm_onnx.runtime.environment import environment

PROMPT = "They had never seen the old house before, and"
SHOWN_TOKENS = 80
SCORED_WINDOWS = 3
WINDOW_TOKENS = 1024
DECODED_TOKENS = 48
REPETITIONS = 9
SEED = 7


@dataclasses.dataclass(frozen=True)
class Models:
    """The two files of the demonstration, open; `scored` is the second one, whose prompts read held keys."""

    dense: DecoderModel
    delta: DecoderModel
    scored: DecoderModel


@dataclasses.dataclass(frozen=True)
class Speed:
    """Medians over interleaved repetitions of one long prompt and the tokens after it."""

    prefill: float
    decode: float
    last: Generation


def main() -> None:
    """Parse the arguments, run, and turn a refusal into one sentence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of a Hugging Face model")
    parser.add_argument("--budget", help=f"what the thresholds may cost [default: {DEFAULT_BUDGET}]")
    parser.add_argument("--profile", choices=PROFILE_NAMES, help="use this profile's threshold instead of calibrating")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the converted models")
    parser.add_argument("--text", type=Path, help="text to score on [default: validation.txt of the model]")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--threads", type=int, default=None, help="[default: ONNX Runtime's choice]")
    try:
        demonstrate(parser.parse_args())
    except DeltaLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def demonstrate(options: argparse.Namespace) -> None:
    """The whole demonstration."""
    console = Console(width=None if sys.stdout.isatty() else 110)
    ops_library_path()  # the slow steps are not worth starting without it
    model, out = options.model, options.out
    if not (model / "config.json").is_file():
        raise DeltaLLMError(f"There is no model in {model} (no config.json): give its directory with --model.")
    text = _read_text(options.text or model / "validation.txt")
    context = context_length(model) or WINDOW_TOKENS
    if options.budget is not None and options.profile is not None:
        raise DeltaLLMError("--budget asks for thresholds to be found, and --profile gives one: leave out one.")
    config = profile(options.profile or "balanced", context)
    with console.status("") as status:
        export_model(model, _folder(out) / "dense.onnx", progress=status.update)
        plan = None
        if options.profile is None:
            found = _calibrated(options, config, status.update)
            if isinstance(found, Calibration):
                config, plan = found.config, found.plan
            lines = found.lines if isinstance(found, Calibration) else [found, json.dumps(config.to_dict())]
            console.print(f"[bold]{model}[/bold]")
            console.print(*lines, sep="\n", markup=False, highlight=False)
        else:
            console.print(f"[bold]{model}[/bold], profile {options.profile}: {json.dumps(config.to_dict())}")
        models = _prepare(out, config, plan, options.threads, status.update)
        tokenizer = TextTokenizer(out)
        _show_text(console, models, tokenizer, options.prompt)
        ids = tokenizer.encode(text)
        length = min(WINDOW_TOKENS, context - DECODED_TOKENS)
        status.update("Scoring the validation text")
        begin = _begin(tokenizer)
        windows = text_windows(ids[len(begin) :], length, SCORED_WINDOWS, begin=begin)
        scores = compare(models.dense, models.scored, windows)
        status.update("Measuring speed")
        speeds = _measure_speed(models, windows[0].tolist())
        counted = generate(models.scored, windows[0].tolist(), max_new_tokens=DECODED_TOKENS + 1).counters
    results = _results(scores, speeds, counted, config)
    console.print(_table(results))
    console.print(_explanation(scores[0], length, options.threads), style="dim")
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    names = ("dense.onnx", "delta.onnx", *(() if plan is None else ("delta.deltallm.json",)), "results.json")
    console.print(f"Written: {', '.join(str(out / name) for name in names)}.")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DeltaLLMError(f"Cannot read the text {path} ({error}): name one with --text.") from error


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeltaLLMError(f"Cannot make the folder {out} ({error}): give another one with --out.") from error
    return out


def _calibrated(options: argparse.Namespace, config: DeltaConfig, say: Callable[[str], None]) -> Calibration | str:
    """Thresholds as `convert` finds them, which are saved too; a sentence where that is not possible."""
    request = request_for(
        options.budget or DEFAULT_BUDGET,
        config,
        v_skip=config.v_skip,
        effort="short",
        windows=(config.window,),
        threads=options.threads,
    )
    calibrate = ShortCalibration(str(options.model), request, insist=options.budget is not None)
    found = calibrate(options.out / "dense.onnx", say)
    if isinstance(found, Calibration):
        found.save(options.out / "delta.deltallm.json")
    return found


def _prepare(out: Path, config: DeltaConfig, plan: AttentionPlan | None, threads: int | None, say: Any) -> Models:
    """Rewrite, open."""
    rewrite(out / "dense.onnx", out / "delta.onnx", config, plan=plan, progress=say)
    opened = [DecoderModel(out / f"{name}.onnx", threads=threads) for name in ("dense", "delta")]
    return Models(*opened, scored=delta_form(out / "delta.onnx", threads=threads))


def _begin(tokenizer: TextTokenizer) -> list[int]:
    """The tokens that the tokenizer puts before every text."""
    return tokenizer.encode("")[:1]


def _show_text(console: Console, models: Models, tokenizer: TextTokenizer, prompt: str) -> None:
    """The same prompt and the same random numbers for both."""
    ids = tokenizer.encode(prompt)
    for name, model in (("dense", models.dense), ("delta", models.delta)):
        sampler = Sampler(temperature=0.7, top_p=0.9, seed=SEED)
        result = generate(model, ids, max_new_tokens=SHOWN_TOKENS, sampler=sampler)
        console.print(f"\n[bold]{name}:[/bold] {escape(prompt)}", end="", highlight=False)
        stream = tokenizer.stream(ids)
        text = "".join(stream.push(token) for token in result.tokens) + stream.finish()
        console.print(text, style="cyan", markup=False, highlight=False)
    console.print()


def _measure_speed(models: Models, prompt: list[int]) -> tuple[Speed, Speed]:
    """Dense and delta in turns, so that a change of the machine's load meets both."""
    runs: tuple[list[Generation], list[Generation]] = ([], [])
    for _ in range(REPETITIONS):
        for kept, model in zip(runs, (models.dense, models.delta), strict=True):
            kept.append(generate(model, prompt, max_new_tokens=DECODED_TOKENS + 1))
    dense, delta = (
        Speed(
            prefill=statistics.median(run.prefill_tokens_per_second for run in kept),
            decode=statistics.median(run.decode_tokens_per_second or 0.0 for run in kept),
            last=kept[-1],
        )
        for kept in runs
    )
    return dense, delta


def _results(
    scores: tuple[Score, Score], speeds: tuple[Speed, Speed], decoding: Counters | None, config: DeltaConfig
) -> dict[str, Any]:
    """Everything measured, JSON-ready: metric → (dense, delta)."""
    measured: dict[str, list[float | None]] = {
        "decode tokens/s": [speed.decode for speed in speeds],
        "prefill tokens/s": [speed.prefill for speed in speeds],
        "perplexity": [score.perplexity for score in scores],
        "KL to dense (nats/token)": [score.kl_to_reference for score in scores],
        "cache bytes/token in use": [s.last.cache_bytes_in_use / s.last.cached_tokens for s in speeds],
        "cache bytes/token allocated": [s.last.cache_bytes_allocated / s.last.cached_tokens for s in speeds],
    }
    scoring = scores[1].counters
    if scoring is not None and decoding is not None:
        for name in ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity"):
            measured[f"{name}, scoring"] = [None, scoring.to_dict()[name]]
        measured["kv_bytes_per_token (B, one layer)"] = [None, decoding.kv_bytes_per_token]
        measured["kv_bytes_read (per decoded token)"] = [None, decoding.kv_bytes_read]
    measured["wall time of scoring (s)"] = [score.seconds for score in scores]
    return {"environment": environment(), "config": config.to_dict(), "measured": measured}


def _table(results: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("delta", justify="right")
    for name, values in results["measured"].items():
        table.add_row(name, *("–" if value is None else f"{value:,.4g}" for value in values))
    return table


def _explanation(dense: Score, length: int, threads: int | None) -> str:
    """How the figures were taken."""
    return (
        f"Perplexity and KL: {dense.tokens} predictions, windows of {length} tokens, held keys active "
        f"(prompts read as decoding reads). Speed: {length} tokens of prompt, then {DECODED_TOKENS} tokens, median of "
        f"{REPETITIONS} turns, {threads or os.cpu_count()} threads. Dense is ONNX Runtime's standard Attention, whose "
        "caches are copied each step."
    )


if __name__ == "__main__":
    main()
