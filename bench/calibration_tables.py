"""The tables of docs/accuracy.md, from the records of bench/calibration.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bench.tables import Record, Row, load, markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "accuracy.md"
#: Names of the records: the bundled model's, and a second one's.
RECORD, SECOND = "calibration", "calibration-stories260K"


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f} %"


def change(share: float) -> str:
    """A change in per cent, with its sign."""
    return f"{100 * share:+.2f} %"


def spent(entry: Row) -> float:
    """How much of the budget the held-out text takes: 1 is all of it."""
    metric = {"kl": "kl", "ppl": "perplexity_increase"}[entry["budget"]["metric"]]
    return float(entry["held_out"][metric] / entry["budget"]["limit"])


def smaller(reached: Row) -> float:
    """How many times smaller than a float32 cache."""
    return float(reached["baseline_kv_bytes_per_token"] / reached["kv_bytes_per_token"])


def setting_table(record: Record) -> str:
    """What it was measured on."""
    setting, held_out = record["settings"], record["held_out"]
    text = record["calibrated"][0]["text"]
    cells = [
        setting["model"],
        f"{setting['text']}: {' + '.join(str(count) for count in text['windows'].values())} windows",
        f"{held_out['name']}: {setting['windows']} windows",
        str(setting["tokens"]),
        f"{setting['window']} + {setting['sinks']}",
        f"{held_out['dense_perplexity']:.2f}",
        change(held_out["window_alone"]["perplexity_increase"]),
    ]
    header = ["model", "calibrated on", "measured on", "tokens per window", "exact window + sinks", "dense perplexity"]
    return markdown([*header, "window and sinks alone"], [cells])


def budget_table(record: Record) -> str:
    """Per granularity and budget: what the held-out text says, and the counters reached."""
    rows = []
    for entry in record["calibrated"]:
        found = entry["held_out"]
        kl, ppl = found["kl_interval"], found["perplexity_increase_interval"]
        rows.append(
            [
                entry["granularity"],
                entry["budget"]["text"],
                f"{found['kl']:.4f} ({kl[0]:.4f}–{kl[1]:.4f})",
                f"{change(found['perplexity_increase'])} ({change(ppl[0])} – {change(ppl[1])})",
                percent(spent(entry), 0),
                percent(found["delta_sparsity"]),
                percent(found["qk_mac_sparsity"]),
                percent(found["attn_mac_sparsity"]),
                f"{found['kv_bytes_per_token']:.1f} ({smaller(found):.1f}×)",
                f"{entry['windows_read']} windows, {entry['windows_read'] * found['seconds'] / found['windows']:.0f} s",
            ]
        )
    header = ["granularity", "budget", "KL", "perplexity", "of the budget", "delta_sparsity", "qk_mac_sparsity"]
    header += ["attn_mac_sparsity", "kv_bytes_per_token (int8; below float32)", "calibration reads"]
    return markdown(header, rows)


def uniform_table(record: Record) -> str:
    """Per granularity and budget: held by calibrated thresholds, and by one threshold at the same divergence."""
    rules = {
        g: _unique(row["rule"] for row in record["uniform"] if row["granularity"] == g) for g in ("row", "element")
    }
    rows = []
    for entry in record["calibrated"]:
        granularity, found = entry["granularity"], entry["held_out"]
        best, cells = 0.0, []
        for rule in rules[granularity]:
            points = [r for r in record["uniform"] if (r["granularity"], r["rule"]) == (granularity, rule)]
            held = at_divergence(points, found["kl"], "delta_sparsity")
            best = max(best, held or 0.0)
            cells.append(f"{rule} {'–' if held is None else percent(held)}")
        gain = f"{100 * (found['delta_sparsity'] - best):+.1f}" if best else "–"
        name = [granularity, entry["budget"]["text"], f"{found['kl']:.4f}", percent(found["delta_sparsity"])]
        rows.append([*name, ", ".join(cells), gain])
    header = ["granularity", "budget", "KL of both", "delta_sparsity, calibrated", "one threshold for all, by rule"]
    return markdown([*header, "points above the best"], rows)


def uniform_bytes_table(record: Record) -> str:
    """The same for the bytes of an int8 cache; rows alone save some."""
    rows = []
    for entry in record["calibrated"]:
        if entry["granularity"] != "row":
            continue
        found, cells = entry["held_out"], []
        for rule in _unique(row["rule"] for row in record["uniform"] if row["granularity"] == "row"):
            points = [r for r in record["uniform"] if (r["granularity"], r["rule"]) == ("row", rule)]
            size = at_divergence(points, found["kl"], "kv_bytes_per_token")
            cells.append("–" if size is None else f"{size:.0f} ({size / found['kv_bytes_per_token']:.1f}×)")
        rows.append([entry["budget"]["text"], f"{found['kl']:.4f}", f"{found['kv_bytes_per_token']:.0f}", *cells])
    rules = _unique(row["rule"] for row in record["uniform"] if row["granularity"] == "row")
    return markdown(["budget", "KL of all", "calibrated", *(f"one threshold, {rule}" for rule in rules)], rows)


def at_divergence(points: Sequence[Row], kl: float, counter: str) -> float | None:
    """A counter where a rule has this divergence: between the neighbours, straight over the logarithm.

    Args:
        points: of one rule.
        kl: nats per token.
        counter: its name.

    Returns:
        None where no two points lie around it.
    """
    ordered = sorted(points, key=lambda point: point["kl"])
    for low, high in itertools.pairwise(ordered):
        if 0 < low["kl"] <= kl <= high["kl"]:
            width = math.log(high["kl"] / low["kl"])
            share = math.log(kl / low["kl"]) / width if width else 0.0
            return float(low[counter] + share * (high[counter] - low[counter]))
    return None


def cache_table(record: Record) -> str:
    """Per plan, cache format and length of text: bytes and divergence."""
    rows = []
    for row in record["caches"]:
        size = f"{row['kv_bytes_per_token']:.1f}"
        name = [row["granularity"], row["budget"], str(row["window_tokens"]), row["cache_format"]]
        rows.append([*name, size, f"{smaller(row):.1f}×", f"{row['kl']:.4f}", change(row["perplexity_increase"])])
    header = ["granularity", "budget", "tokens", "cache", "kv_bytes_per_token", "below float32", "KL", "perplexity"]
    return markdown(header, rows)


def v_skip_table(record: Record) -> str:
    """Per ε: values left out where all keys are exact."""
    rows = []
    for row in record["v_skip"]:
        low, high = row["perplexity_increase_interval"]
        cost = f"{change(row['perplexity_increase'])} ({change(low)} – {change(high)})"
        rows.append([f"{row['v_skip']:g}", percent(row["values_skipped"], 0), f"{row['kl']:.2g}", cost])
    return markdown(["v_skip", "values left out", "KL", "perplexity"], rows)


def goal_table(record: Record) -> str:
    """The goals that were set before anything was built, and what is reached."""
    found = {(entry["granularity"], entry["budget"]["text"]): entry["held_out"] for entry in record["calibrated"]}
    alone = record["held_out"]["window_alone"]["perplexity_increase"]
    rows = []
    for goal, granularity, budget, least in (
        ("elements held", "element", "ppl=+0.5%", 0.85),
        ("rows held", "row", "ppl=+0.5%", 0.75),
        ("rows held", "row", "ppl=+1%", 0.85),
    ):
        if (granularity, budget) in found:
            reached = found[granularity, budget]
            rows.append([f"{goal}, {budget}", f"≥ {least:.0%}", percent(reached["delta_sparsity"]), _cost(reached)])
    for granularity in ("row", "element"):
        if (granularity, "ppl=+0.5%") in found:
            reached = found[granularity, "ppl=+0.5%"]
            kept = 1 - math.log1p(reached["perplexity_increase"]) / math.log1p(alone)
            name = f"far-context gain kept, {granularity}, ppl=+0.5%"
            rows.append([name, "≥ 80%", percent(kept), _cost(reached)])
    if ("row", "ppl=+0.5%") in found:
        reached = found["row", "ppl=+0.5%"]
        rows.append(["kv_bytes_per_token, int8 and runs", "12×", f"{smaller(reached):.1f}×", _cost(reached)])
    free = [row for row in record["v_skip"] if row["perplexity_increase_interval"][0] <= 0]
    if free:
        most = max(free, key=lambda row: row["values_skipped"])
        rows.append(["values left out at no measurable cost", "70%", percent(most["values_skipped"]), _cost(most)])
    return markdown(["goal", "asked for", "reached", "held-out cost"], rows)


def _cost(reached: Row) -> str:
    low, high = reached["perplexity_increase_interval"]
    return (
        f"KL {reached['kl']:.4f}, perplexity {change(reached['perplexity_increase'])} ({change(low)} – {change(high)})"
    )


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


KINDS: Mapping[str, Callable[[Record], str]] = {
    "setting": setting_table,
    "budgets": budget_table,
    "one threshold": uniform_table,
    "one threshold, bytes": uniform_bytes_table,
    "caches": cache_table,
    "v_skip": v_skip_table,
    "goals": goal_table,
}


def _of(make: Callable[[Record], str], name: str) -> Callable[[], str]:
    return lambda: make(load(name))


TABLES: Mapping[str, Callable[[], str]] = {
    f"{page}, {kind}": _of(make, name)
    for page, name in (("accuracy", RECORD), ("accuracy stories", SECOND))
    for kind, make in KINDS.items()
}
