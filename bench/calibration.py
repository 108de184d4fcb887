"""What calibrated thresholds keep and give, on text that nothing was chosen by.

    python -m bench.calibration             # measure (about half an hour), write the record, fill in docs/accuracy.md
    python -m bench.calibration --tables    # the page's tables alone

Every budget is calibrated on one text by the product's own `calibrate` and then measured on another, in windows read by
one call each (`prefill = "delta"`: what decoding token by token reads). Beside it stand one threshold for all heads, by
several rules, the packed caches, and skipped values. A run that was stopped goes on with the same --journal.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from bench.calibration_study import Setting, Study, skipped_values, uniform_thresholds, window_alone
from bench.calibration_tables import PAGE, RECORD, TABLES
from bench.script import check_record_folder, refusals, script_parser
from bench.tables import RECORDS, fill_page
from deltallm_onnx import DeltaConfig
from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.bench import write_record
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.search import UnreachableError
from deltallm_onnx.calibration.source import ModelFiles
from deltallm_onnx.calibration.text import read_text
from deltallm_onnx.config import CacheFormat, Granularity
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime.environment import environment

_ROOT = Path(__file__).resolve().parents[1]
MODEL = _ROOT / "models" / "demo"

BUDGETS = ("kl=0.01", "kl=0.02", "kl=0.05", "ppl=+0.5%", "ppl=+1%")
V_SKIPS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
#: Cache formats, and the lengths of text at which they are measured: the one calibrated at, and twice that.
FORMATS: tuple[CacheFormat, ...] = ("float32", "int8", "int4")
LENGTHS = (1, 2)

#: Granularity, budget, and the plan that keeps it.
Found = tuple[Granularity, str, DeltaConfig, AttentionPlan]


def take(setting: Setting, budgets: Sequence[str], journal: Journal) -> dict[str, Any]:
    """Measure everything: the record.

    Args:
        setting: model and texts.
        budgets: as behind --budget.
        journal: of measurements.

    Raises:
        DeltaLLMError: for a model or text that cannot be read.
    """
    for text in (setting.text, setting.held_out):
        read_text([text])  # a text that is not there is refused before the model is traced
    with tempfile.TemporaryDirectory() as name:
        dense = Path(name) / "dense.onnx"
        export_model(setting.model, dense)
        study = Study(setting, ModelFiles.of(dense, setting.model.name), journal, Path(name))
        record, found = calibrations(study, budgets)
        with study.held_out(setting.tokens, setting.windows) as held_out:
            for entry, (_, _, config, plan) in zip(record["calibrated"], found, strict=True):
                entry["held_out"] = held_out.reached(config, plan)
                say(f"{entry['granularity']} {entry['budget']['text']}: held-out kl {entry['held_out']['kl']:.4f}")
            record["held_out"] = {
                "name": setting.held_out.name,
                "sha256": held_out.parts.sha256,
                "dense_perplexity": held_out.perplexity,
                "window_alone": window_alone(setting, held_out.parts.verification, held_out.perplexity),
            }
            statistics = study.layer_statistics()
            record["uniform"] = [
                row
                for granularity in get_args(Granularity)
                for row in uniform_thresholds(held_out, statistics, granularity)
            ]
            say("one threshold for all: done")
            record["v_skip"] = list(skipped_values(held_out, statistics, V_SKIPS))
        record["caches"] = caches(study, found)
    return record


def calibrations(study: Study, budgets: Sequence[str]) -> tuple[dict[str, Any], list[Found]]:
    """The record so far, and the plans; a budget that cannot be kept is recorded as the sentence that says so."""
    entries, found, refused = [], [], []
    for granularity in get_args(Granularity):
        for budget in budgets:
            try:
                result, read = study.calibrated(granularity, budget)
            except UnreachableError as error:
                refused.append({"granularity": granularity, "budget": budget, "error": str(error)})
                continue
            entry = {"granularity": granularity, "windows_read": read, **result.summary()}
            # A record holds no path of the machine that it was taken on.
            entries.append(entry | {"text": {**entry["text"], "name": study.setting.text.name}})
            found.append((granularity, budget, result.config, result.plan))
            say(f"{granularity} {budget}: calibrated, {read} windows read")
    setting = study.setting
    settings = {
        "model": setting.model.name,
        "text": setting.text.name,
        "window": setting.window,
        "sinks": setting.sinks,
        "tokens": setting.tokens,
        "windows": setting.windows,
        "rules": {granularity: list(rules) for granularity, rules in setting.rules.items()},
        "threads": setting.threads,
    }
    record = {"settings": settings, "environment": environment(), "calibrated": entries, "refused": refused}
    return record, found


def caches(study: Study, found: Sequence[Found]) -> list[dict[str, Any]]:
    """The plans for perplexity in every cache format, at two lengths of text."""
    rows = []
    for times in LENGTHS:
        tokens = times * study.setting.tokens
        if study.files.context is not None and tokens > study.files.context:
            continue
        with study.held_out(tokens, study.setting.windows // times) as held_out:
            for granularity, budget, config, plan in found:
                if not budget.startswith("ppl"):
                    continue
                for cache_format in FORMATS:
                    reached = held_out.reached(config.replace(cache_format=cache_format), plan)
                    named = {"granularity": granularity, "budget": budget, "cache_format": cache_format}
                    rows.append({**named, "window_tokens": tokens, **reached})
    say("cache formats: done")
    return rows


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = script_parser("bench.calibration", __doc__)
    parser.add_argument("--tables", action="store_true", help="fill in the page from the records, measure nothing")
    parser.add_argument("--model", type=Path, default=MODEL, help="Hugging Face directory [default: models/demo]")
    parser.add_argument("--text", type=Path, help="to calibrate on [default: the model's calibration.txt]")
    parser.add_argument("--held-out", type=Path, help="to measure on [default: the model's validation.txt]")
    parser.add_argument(
        "--budget", action="append", help=f"repeatable [default: {', '.join(BUDGETS)}]".replace("%", "%%")
    )
    parser.add_argument("--calibration-windows", type=int, help="of the other [default: as a full calibration takes]")
    for granularity in get_args(Granularity):
        parser.add_argument(
            f"--{granularity}-rule", action="append", help="repeatable [default: as a full calibration chooses]"
        )
    parser.add_argument("--window", type=int, default=64, help="exact newest tokens [default: %(default)s]")
    parser.add_argument("--sinks", type=int, default=4, help="exact first tokens [default: %(default)s]")
    parser.add_argument("--tokens", type=int, default=1024, help="per window of text [default: %(default)s]")
    parser.add_argument("--windows", type=int, default=40, help="of held-out text [default: %(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="of ONNX Runtime [default: %(default)s]")
    parser.add_argument("--journal", type=Path, help="file of measurements, to go on after a stop")
    parser.add_argument("--record", type=Path, default=RECORDS, help="folder for the record [default: bench/records]")
    parser.add_argument("--name", default=RECORD, help="of the record [default: %(default)s]")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, unless only the tables are asked for, and fill in the page."""
    options = parsed(arguments)
    with refusals():
        if not options.tables:
            check_record_folder(options.record)
            setting = Setting(
                model=options.model,
                text=options.text or options.model / "calibration.txt",
                held_out=options.held_out or options.model / "validation.txt",
                window=options.window,
                sinks=options.sinks,
                tokens=options.tokens,
                windows=options.windows,
                calibration_windows=options.calibration_windows,
                rules={
                    granularity: tuple(rules)
                    for granularity in get_args(Granularity)
                    if (rules := getattr(options, f"{granularity}_rule"))
                },
                threads=options.threads,
            )
            record = take(setting, options.budget or BUDGETS, Journal(options.journal))
            write_record(options.record / f"{options.name}.json", record)
        if options.record == RECORDS:
            fill_page(PAGE, TABLES)


if __name__ == "__main__":
    main()
