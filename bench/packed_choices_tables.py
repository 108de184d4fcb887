"""The tables of docs/packed-cache-choices.md, from the record of bench/packed_choices.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean as mean

from bench.tables import Record, Row, load, markdown
from deltallm_onnx.packed_sizes import BLOCK_ROWS, TILE_ROWS, bytes_per_token

RECORD = "packed_choices"
#: Rows that share the widths: a tile of an int8 cache, a sealed block of an int4 cache.
SPANS = {"int8": TILE_ROWS, "int4": BLOCK_ROWS}
#: Ways to hold whole rows: two that the operator has, and two other keys for the runs of the first.
RELATIVE, WEIGHTED = "relative", "absolute, w = rms(q)"
MEAN_KEY, AGAINST_MEAN = "relative, read with the mean key", "relative, held against the mean key and read with it"
RUN_KEYS = {RELATIVE: "last transmitted", MEAN_KEY: "mean", AGAINST_MEAN: "mean, held against it"}
#: Channels of a group in the tables that show one size: what one instruction multiplies.
GROUP = 4


def percent(share: float) -> str:
    """A share: whole percents, and two digits of smaller ones."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"


def limits(record: Record) -> list[float]:
    """Divergences that thresholds may cost."""
    return sorted({row["limit"] for row in record["element"]})


def row_results(record: Record, limit: float) -> list[Row]:
    """What the operator's rules hold within a limit."""
    return [row for row in record["row"]["at_limits"] if row["target"] == limit and row["rule"] in {RELATIVE, WEIGHTED}]


def zero_width_table(record: Record) -> str:
    """Per limit and rule: how often a group stays as it is, channels in the order they have."""
    groups = list(record["element"][0]["zero_width"]["int4"]["stored"])
    header = ["KL ≤", "rule", "zeros of Δ"]
    header += [f"{cache}, {group}" for cache in SPANS for group in groups]
    lines = []
    for limit in limits(record):
        for row in record["element"]:
            if row["limit"] == limit:
                shares = [mean(row["zero_width"][cache]["stored"][group]) for cache in SPANS for group in groups]
                lines.append([str(limit), row["rule"], *map(percent, [row["delta_sparsity"], *shares])])
    return markdown(header, lines)


def order_table(record: Record) -> str:
    """Per limit: groups of four channels in several orders, by the rule that is best in each."""
    names = list(record["element"][0]["zero_width"]["int8"])
    lines = []
    for limit in limits(record):
        found = [row["zero_width"] for row in record["element"] if row["limit"] == limit]
        for cache in SPANS:
            best = [max(mean(zero[cache][name][str(GROUP)]) for zero in found) for name in names]
            lines.append([str(limit), cache, *map(percent, best)])
    return markdown(["KL ≤", "cache", *names], lines)


def layer_table(record: Record) -> str:
    """Per limit and rule, layer by layer: groups of four channels of int4 blocks, and rows held."""
    found = []
    for limit in limits(record):
        found += [
            (limit, f"element, {row['rule']}", row["zero_width"]["int4"]["stored"][str(GROUP)])
            for row in record["element"]
            if row["limit"] == limit
        ]
        found += [(limit, f"row, {row['rule']}", row["held"]) for row in row_results(record, limit)]
    lines = [[str(limit), rule, *map(percent, [mean(shares), *shares])] for limit, rule, shares in found]
    layers = range(len(found[0][2]))
    return markdown(["KL ≤", "rule", "all", *(f"layer {layer}" for layer in layers)], lines)


def savings(record: Record, limit: float, cache: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Shares of bytes, and of multiplications of q·k and p·v, that zero widths and that merged runs leave out.

    Zero widths: four channels each, by the rule and in the order that are best, one bit per group and span for the
    width. Of an int8 tile the first row stays; in an int4 block a channel's value is its zero, which is there anyway.
    """
    D = record["settings"]["head_size"]
    token = 2 * bytes_per_token(cache, D)
    found = [row["zero_width"][cache] for row in record["element"] if row["limit"] == limit]
    share = max(mean(shares[str(GROUP)]) for zero in found for shares in zero.values())
    codes = D * (1 - 1 / TILE_ROWS) if cache == "int8" else D / 2
    bits = D / GROUP / SPANS[cache]
    held = max(mean(row["held"]) for row in row_results(record, limit))
    return ((share * codes - bits / 8) / token, share / 2 * (codes / D if cache == "int8" else 1)), (held, held)


def savings_table(record: Record) -> str:
    """Per limit, cache and structure: bytes of a token and KV head, what is left out, and the most that is worth."""
    lines = []
    for limit in limits(record):
        for cache in SPANS:
            token = 2 * bytes_per_token(cache, record["settings"]["head_size"])
            for name, (saved, skipped) in zip(("zero widths", "runs"), savings(record, limit, cache), strict=True):
                most = 1 / (1 - max(saved, skipped))
                left = f"{token * (1 - saved):.1f} of {token}"
                lines.append([str(limit), cache, name, left, percent(saved), percent(skipped), f"{most:.2f}×"])
    header = ["KL ≤", "cache", "structure", "bytes", "bytes saved", "products left out", "times as fast, at most"]
    return markdown(header, lines)


def runs_table(record: Record) -> str:
    """Per share held and key of a run: divergence, and how it compares with the key that was transmitted last."""
    lines = []
    shares = record["row"]["at_shares"]
    for share in sorted({row["target"] for row in shares}):
        found = {row["rule"]: row for row in shares if row["target"] == share}
        base = found[RELATIVE]
        for rule, name in RUN_KEYS.items():
            row = found[rule]
            parts = [x / y for x, y in zip(row["kl_of_windows"], base["kl_of_windows"], strict=True)]
            change = "–" if row is base else f"{row['kl'] / base['kl']:.2f} ({min(parts):.2f}–{max(parts):.2f})"
            cells = [percent(mean(row["held"])), name, f"{row['theta']:.3f}", f"{row['kl']:.2g}", change]
            lines.append([*cells, f"{row['perplexity']:.2f}"])
    header = ["held", "key of a run", "θ", "KL", "against the last transmitted (windows)", "perplexity"]
    return markdown(header, lines)


def runs_at_limits_table(record: Record) -> str:
    """Per limit: the share of tokens that is held with each key of a run."""
    lines = []
    for limit in limits(record):
        found = {row["rule"]: row for row in record["row"]["at_limits"] if row["target"] == limit}
        lines.append([str(limit), *(percent(mean(found[rule]["held"])) for rule in [*RUN_KEYS, WEIGHTED])])
    return markdown(["KL ≤", *RUN_KEYS.values(), WEIGHTED], lines)


def setting_table(record: Record) -> str:
    """What it was measured on."""
    setting, rounding = record["settings"], record["rounding"]
    cells = [
        f"{setting['windows']} windows of {setting['tokens']} tokens of {setting['model']}/{setting['text']}",
        f"{setting['window']} + {setting['sinks']}",
        f"{record['dense_perplexity']:.2f}",
        f"{record['everything_held']['kl']:.3f}, {record['everything_held']['perplexity']:.2f}",
        *(f"{rounding[cache]:.2g}" for cache in SPANS),
    ]
    header = ["text", "window + sinks", "dense perplexity", "KL and perplexity, everything held"]
    header += [f"KL of {cache} alone, θ = 0" for cache in SPANS]
    return markdown(header, [cells])


TABLES: Mapping[str, Callable[[], str]] = {
    "choices, setting": lambda: setting_table(load(RECORD)),
    "choices, zero widths": lambda: zero_width_table(load(RECORD)),
    "choices, orders": lambda: order_table(load(RECORD)),
    "choices, layers": lambda: layer_table(load(RECORD)),
    "choices, savings": lambda: savings_table(load(RECORD)),
    "choices, runs": lambda: runs_table(load(RECORD)),
    "choices, runs at limits": lambda: runs_at_limits_table(load(RECORD)),
}
