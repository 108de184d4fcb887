"""The model card, filled from the run's log and the two evaluations."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpus import Book, books_of
from errors import UserError

CURVE_POINTS = 40
TEMPLATE = Path(__file__).with_name("card_template.md")


def read_log(run: Path) -> list[dict[str, Any]]:
    """The run's log as it would be without interruptions: of steps done twice, the last record counts."""
    path = run / "log.jsonl"
    if not path.is_file():
        raise UserError(f"no log at {path}; train first with models/train/train.py --out {run}")
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        kept[record["event"], record["step"]] = record
    return sorted(kept.values(), key=lambda record: record["step"])


def curve(records: list[dict[str, Any]]) -> list[tuple[int, int, int, float, float, float | None]]:
    """Rows (step, tokens, context, lr factor, mean training loss since the last row, last validation loss)."""
    steps = [record for record in records if record["event"] == "step"]
    validations = {record["step"]: record["loss"] for record in records if record["event"] == "validation"}
    stride = max(1, -(-len(steps) // CURVE_POINTS))
    rows = []
    for start in range(0, len(steps), stride):
        part = steps[start : start + stride]
        last = part[-1]
        near = [value for step, value in validations.items() if part[0]["step"] <= step <= last["step"]]
        mean = sum(record["loss"] for record in part) / len(part)
        rows.append((last["step"], last["tokens"], last["context"], last["lr"], mean, near[-1] if near else None))
    return rows


def write_curve(run: Path, path: Path) -> None:
    """Write the training curve as a tab-separated table."""
    lines = ["step\ttokens\tcontext\tlr_factor\ttrain_loss\tvalidation_loss"]
    for step, tokens, context, factor, train, validation in curve(read_log(run)):
        shown = "" if validation is None else f"{validation:.4f}"
        lines.append(f"{step}\t{tokens}\t{context}\t{factor:.3f}\t{train:.4f}\t{shown}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def titles(books: list[Book]) -> str:
    """One sentence part naming books, authors and years."""
    return "; ".join(f"*{book.title}* ({book.author}, {book.year})" for book in books)


def read_evaluation(path: Path) -> dict[str, Any]:
    """What evaluate.py wrote; a missing file is refused."""
    if not path.is_file():
        raise UserError(f"no evaluation at {path}; make it with models/train/evaluate.py --out {path}")
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def far_context_rows(evaluations: list[dict[str, Any]]) -> str:
    """Markdown rows: perplexity with full and with narrow attention."""
    rows = []
    for evaluation in evaluations:
        far = evaluation["far_context"]
        rows.append(
            f"| {evaluation['measured_on']} ({far['windows']} windows) | {far['perplexity_full']:.2f} "
            f"| {far['perplexity_window64_and_first_token']:.2f} ({far['fall_window64_and_first_token']:.1%}) "
            f"| {far['perplexity_window64']:.2f} ({far['fall_window64']:.1%}) "
            f"| {far['drop_128_256_to_1024_2048']:.3f} ± {far['drop_128_256_to_1024_2048_standard_error']:.3f} |"
        )
    return "\n".join(rows)


def position_rows(evaluations: list[dict[str, Any]]) -> str:
    """Markdown rows: loss by position in the window."""
    rows = []
    for evaluation in evaluations:
        far = evaluation["far_context"]
        for name, key in (("full", "full"), ("window 64 + first token", "window64_and_first_token")):
            losses = " | ".join(f"{value:.3f}" for value in far[f"loss_by_position_{key}"].values())
            rows.append(f"| {evaluation['measured_on']}, {name} | {losses} |")
    return "\n".join(rows)


def start_rows(records: list[dict[str, Any]]) -> str:
    """Markdown rows: from which step on, with which settings the run went on (plans that changed nothing left out)."""
    rows: dict[int, str] = {}
    for record in records:
        if record["event"] == "start":
            plan = record["plan"]
            shares = f"{record['recall']:.0%} | {record.get('random', 0.5):.0%}"
            settings = f"{shares} | {plan['batch_tokens']} | {plan['steps']} | {plan['decay']:.0%} | {plan['long']:.0%}"
            rows[record["step"]] = f"| {record['step'] + 1} | {settings} |"
    return "\n".join(rows[step] for step in sorted(rows))


def write_card(run: Path, path: Path, preliminary: bool, remark: str) -> None:
    """Fill the template; every number comes from the log or an evaluation."""
    records = read_log(run)
    steps = [record for record in records if record["event"] == "step"]
    starts = [record for record in records if record["event"] == "start"]
    last, plan = steps[-1], starts[-1]["plan"]
    evaluations = [read_evaluation(run / f"evaluation_{name}.json") for name in ("text", "books")]
    rates = sorted(record["rate"] for record in steps)
    recall = evaluations[1]["induction"]
    batches = [after["tokens"] - before["tokens"] for before, after in pairwise([{"tokens": 0}, *steps])]
    windows = sum(batch // record["context"] for batch, record in zip(batches, steps, strict=True))
    note = f"**Preliminary: step {last['step']} of {plan['steps']}, learning rate not yet lowered.**\n\n"
    curve_lines = [
        f"| {step} | {tokens / 1e6:.2f} | {context} | {factor:.2f} | {train:.3f} | {validation:.3f} |"
        for step, tokens, context, factor, train, validation in curve(records)
        if validation is not None
    ]
    shown = [row for index, row in enumerate(curve_lines) if index % 2 == 0 or index == len(curve_lines) - 1]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        note=note if preliminary else "",
        parameters=f"{starts[-1]['parameters'] / 1e6:.2f}",
        books=len(books_of("train")),
        validation=titles(books_of("validation")),
        calibration=titles(books_of("calibration")),
        steps=last["step"],
        tokens=f"{last['tokens'] / 1e6:.1f}",
        batch=" or ".join(str(batch) for batch in sorted(set(batches))),
        windows=windows,
        starts=start_rows(records),
        remark=f"{remark}\n\n" if remark else "",
        seed=starts[-1]["seed"],
        context=plan["context"],
        long_context=plan["long_context"],
        long_steps=sum(record["context"] == plan["long_context"] for record in steps),
        decay_steps=sum(record["lr"] < 1 for record in steps if record["step"] > plan["warmup"]),
        hours=f"{sum(record['seconds'] for record in steps) / 3600:.2f}",
        rate=rates[len(rates) // 2],
        threads=starts[-1].get("workers", 2),
        precision=starts[-1]["precision"],
        torch=starts[-1]["torch"],
        far_context=far_context_rows(evaluations),
        positions=position_rows(evaluations),
        induction_first=f"{recall['loss_first']:.2f}",
        induction_second=f"{recall['loss_second']:.2f}",
        induction_uniform=f"{recall['uniform_loss']:.2f}",
        perplexity=f"{evaluations[1]['far_context']['perplexity_full']:.2f}",
        curve="\n".join(shown),
        sample=evaluations[1]["sample"]["text"].replace("<s>", "").strip().replace("\n", "\n> "),
        sample_seed=evaluations[1]["sample"]["seed"],
    )
    path.write_text(text, encoding="utf-8")
