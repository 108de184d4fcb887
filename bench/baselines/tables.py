"""The tables of docs/baselines.md, from the record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.baselines.budgets import COSTS, FAMILIES, RATIOS, best
from bench.tables import RECORDS, Record, Row, load, markdown

RECORD = "baselines"
#: A random sequence that stands at the end alone: nothing is to be retrieved.
NOT_BEFORE = "not there before"
#: What a knob is called in the tables, where its name alone does not say it.
_KNOBS: Mapping[str, Callable[[Any], str]] = {
    "rows": str,
    "bits": "{} bits".format,
    "group": "groups of {}".format,
    "kept": "{} rows".format,
    "pages": "{} pages".format,
    "dense layers": lambda count: f"{count} dense layers" if count else "",
    "shared": lambda shared: "chosen per KV head" if shared else "chosen per head",
}


def knobs(row: Row) -> str:
    """A setting in a few words."""
    words = (_KNOBS.get(name, f"{name} {{}}".format)(value) for name, value in row["knobs"].items())
    return ", ".join(word for word in words if word)


def divergence(kl: float) -> str:
    """In nats, two digits."""
    return f"{kl:.2g}" if kl >= 1e-4 else "< 0.0001"


def dense_cost(record: Record, cost: str) -> float:
    """Of float32 rows."""
    return float(record["dense"][cost])


def compared(record: Record, family: str, cost: str, ratio: float) -> Row | None:
    """A family's setting of a budget, chosen on the tuning text, measured on the held-out one."""
    at = best(record["tuned"], family, cost, dense_cost(record, cost) / ratio)
    return next((row for row in record["results"] if row["tuned"] == at), None)


def budget_table(record: Record, cost: str) -> str:
    """The divergence of every family within budgets of one cost; the nearest to the dense model in bold."""
    dense = dense_cost(record, cost)
    unit, scale = ("bytes", 1) if cost == COSTS[0] else ("KiB", 1024)
    header = ["", *(f"1/{ratio}: {dense / ratio / scale:.0f} {unit}" for ratio in RATIOS)]
    columns = [{family: compared(record, family, cost, ratio) for family in FAMILIES} for ratio in RATIOS]
    lines = []
    for family in FAMILIES:
        cells = []
        for column in columns:
            row, least = column[family], min((row["kl"] for row in column.values() if row is not None), default=0)
            text = "–" if row is None else divergence(row["kl"])
            cells.append(f"**{text}**" if row is not None and row["kl"] == least else text)
        lines.append([family, *cells])
    return markdown(header, lines)


def chosen_table(record: Record, cost: str, ratio: float) -> str:
    """Everything about the settings within one budget."""
    depths = list(record["dense"]["repeated_sequence_loss"])
    header = ["", "setting", "bytes kept", "KiB read", "KL", "last quarter", "perplexity", "same top token"]
    header += [NOT_BEFORE if depth == str(None) else f"repeated from {depth}" for depth in depths]
    rows = [("dense, float32", {**record["dense"], "knobs": {}})]
    rows += [(family, row) for family in FAMILIES if (row := compared(record, family, cost, ratio)) is not None]
    return markdown(header, [[name, knobs(row), *_measured(row, depths)] for name, row in rows])


def _measured(row: Row, depths: list[str]) -> list[str]:
    return [
        f"{row['kv_bytes_per_token']:.0f}",
        f"{row['kv_bytes_read'] / 1024:.0f}",
        divergence(row["kl"]) if row["kl"] else "0",
        divergence(row["kl_by_position"][-1]) if row["kl"] else "0",
        f"{row['perplexity']:.2f}",
        f"{100 * row['top1_agreement']:.1f} %",
        *(f"{row['repeated_sequence_loss'][depth]:.2f}" for depth in depths),
    ]


def operator_table(record: Record) -> str:
    """Ours in the oracle form beside the operator, decoding the same windows."""
    columns = (
        ("kl", "KL", 1, "3g"),
        ("perplexity", "perplexity", 1, "3f"),
        ("kv_bytes_per_token", "bytes kept", 1, "2f"),
        ("kv_bytes_read", "KiB read", 1024, "1f"),
    )
    lines = [
        [
            knobs(row),
            *(
                f"{row[form][name] / unit:.{kind}}"
                for name, _, unit, kind in columns
                for form in ("oracle", "operator")
            ),
        ]
        for row in record["operator"]
    ]
    return markdown(["", *(f"{label}, {form}" for _, label, *_ in columns for form in ("oracle", "operator"))], lines)


def setting_table(record: Record) -> str:
    """What it was measured on."""
    own, dense = record["settings"], record["dense"]
    heads, kv_heads = own["heads"]
    cells = [
        own["model"],
        f"{own['layers']}, {heads}/{kv_heads} of {own['head_size']}",
        f"{own['windows']} of {own['tokens']} tokens",
        f"{own['tuning_windows']}",
        f"{dense['perplexity']:.2f}",
        f"{dense['kv_bytes_per_token']:.0f}",
        f"{dense['kv_bytes_read'] / 1024:.0f}",
    ]
    header = ["model", "layers, heads", "held-out windows", "tuning windows", "dense perplexity"]
    return markdown([*header, "bytes kept, float32", "KiB read, float32"], [cells])


def tables(records: Path = RECORDS) -> Mapping[str, Callable[[], str]]:
    """By the names of the page's markers."""

    def of(table: Callable[..., str], *arguments: Any) -> Callable[[], str]:
        return lambda: table(load(RECORD, records), *arguments)

    kept, read = COSTS
    return {
        "baselines, setting": of(setting_table),
        "baselines, kept": of(budget_table, kept),
        "baselines, read": of(budget_table, read),
        "baselines, 12 times smaller": of(chosen_table, kept, 12),
        "baselines, 8 times fewer reads": of(chosen_table, read, 8),
        "baselines, operator": of(operator_table),
    }
