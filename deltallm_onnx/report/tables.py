"""The report's tables: which numbers of the data stand beside which."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from deltallm_onnx.report.drawing.bars import bin_text
from deltallm_onnx.report.numbers import Cell, cell

#: Longer tables are folded away.
_FOLDED = 14
#: Rows of a table at most; all of them are in the JSON.
LONGEST = 300

Data = Mapping[str, Any]
#: Key of an object, its heading, and the form it is written in.
Column = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: what it shows, with units that the headings leave open.
        header: of the columns; the first one names rows.
        rows: cells of data, or plain text.
        left_out: rows that are in the JSON only.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    left_out: int = 0

    @property
    def folded(self) -> bool:
        """Whether it opens on request only."""
        return len(self.rows) > _FOLDED


def tables(data: Data) -> dict[str, list[Table]]:
    """The tables of every part that is there."""
    makers = {
        "quality": _quality,
        "sparsity": _sparsity,
        "attention": _attention,
        "runs": _runs,
        "cache": _cache,
        "trade_off": _trade_off,
        "speeds": _speeds,
        "calibration": _calibration,
    }
    found = {part: make(data) for part, make in makers.items() if data[part] is not None}
    return {**found, "model": [_layers(data)]}


def _list(data: Data, path: str, items: Sequence[Any], columns: Sequence[Column], caption: str) -> Table:
    """One row per object of a list; columns that no object has are left out."""
    shown = [column for column in columns if any(column[0] in item for item in items)]
    rows = [
        [cell(data, f"{path}.{i}.{key}", form) if key in item else "–" for key, _, form in shown]
        for i, item in enumerate(items[:LONGEST])
    ]
    return Table(caption, [heading for _, heading, _ in shown], rows, len(items) - len(rows))


def _quality(data: Data) -> list[Table]:
    columns: list[Column] = [
        ("from", "from", "count"),
        ("to", "to", "count"),
        ("perplexity", "perplexity", "digits"),
        ("baseline_perplexity", "dense", "digits"),
        ("perplexity_increase", "change", "change"),
        ("kl", "KL, nats", "digits"),
        ("top1_agreement", "top-1 agreement", "share"),
    ]
    items = data["quality"]["by_position"]
    return [_list(data, "quality.by_position", items, columns, "By position: tokens before the predicted one")]


def _sparsity(data: Data) -> list[Table]:
    forms = {
        "delta_sparsity": "share",
        "qk_mac_sparsity": "share",
        "attn_mac_sparsity": "share",
        "kv_bytes_per_token": "plain bytes",
        "kv_bytes_read": "bytes",
    }
    total: list[list[Cell | str]] = [[name, cell(data, f"sparsity.total.{name}", form)] for name, form in forms.items()]
    total.append(["wall time of reading", cell(data, "sparsity.seconds", "seconds")])
    section = data["sparsity"]
    rows: list[list[Cell | str]] = [
        [
            cell(data, f"sparsity.layers.{i}", "count"),
            str(head),
            *(cell(data, f"sparsity.by_head.{name}.{i}.{head}", form) for name, form in forms.items()),
        ]
        for i in range(len(section["layers"]))
        for head in range(len(section["by_head"]["delta_sparsity"][i]))
    ]
    return [
        Table("All layers and heads", ["counter", "value"], total),
        Table(
            "By layer and KV head; bytes per token and per decoded token are those of the head alone",
            ["layer", "KV head", *forms],
            rows[:LONGEST],
            max(0, len(rows) - LONGEST),
        ),
    ]


def _attention(data: Data) -> list[Table]:
    columns: list[Column] = [
        ("query", "query", "count"),
        ("query_token", "its token", "token"),
        ("key", "key", "count"),
        ("key_token", "its token", "token"),
        ("exact", "exact", "fine share"),
        ("delta", "as read", "fine share"),
    ]
    return [
        _list(
            data,
            f"attention.maps.{i}.largest_changes",
            found["largest_changes"],
            columns,
            f"Layer {found['layer']}, query head {found['head']}: where attention changes most",
        )
        for i, found in enumerate(data["attention"]["maps"])
        if found["largest_changes"]
    ]


def _runs(data: Data) -> list[Table]:
    section = data["runs"]
    rows = [
        [
            cell(data, f"runs.layers.{i}.layer", "count"),
            cell(data, f"runs.layers.{i}.runs", "count"),
            cell(data, f"runs.layers.{i}.mean", "digits"),
            cell(data, f"runs.layers.{i}.longest", "count"),
            *(cell(data, f"runs.layers.{i}.share_by_bin.{n}", "share") for n in range(len(section["bins"]))),
        ]
        for i in range(len(section["layers"]))
    ]
    header = ["layer", "runs", "mean, tokens", "longest", *(bin_text(found) for found in section["bins"])]
    what = "tokens" if section["granularity"] == "row" else "elements"
    return [Table(f"Runs by layer, and the share of {what} in runs of so many tokens", header, rows)]


def _cache(data: Data) -> list[Table]:
    columns: list[Column] = [
        ("tokens", "tokens", "count"),
        ("in_use", "in use", "bytes"),
        ("allocated", "allocated", "bytes"),
        ("kv_bytes_per_token", "kv_bytes_per_token", "plain bytes"),
        ("times_below_float32", "below float32", "times"),
    ]
    return [_list(data, "cache.points", data["cache"]["points"], columns, "All layers, keys and values")]


def _trade_off(data: Data) -> list[Table]:
    saving = data["trade_off"]["saving"]
    forms = {
        "kv_bytes_per_token": "plain bytes",
        "kv_bytes_read": "bytes",
        "delta_sparsity": "share",
        "qk_mac_sparsity": "share",
    }
    found = sorted(
        (point[saving], f"trade_off.sources.{i}", f"trade_off.sources.{i}.points.{n}", point)
        for i, source in enumerate(data["trade_off"]["sources"])
        for n, point in enumerate(source["points"])
        if point.get("on_front")
    )
    shown = [name for name in forms if any(name in point for *_, point in found)]
    labelled = any("label" in point for *_, point in found)
    rows = [
        [
            cell(data, f"{source}.file", "text"),
            *([cell(data, f"{path}.label", "text") if "label" in point else "–"] if labelled else []),
            cell(data, f"{path}.kl", "digits"),
            *(cell(data, f"{path}.{name}", forms[name]) if name in point else "–" for name in shown),
        ]
        for _, source, path, point in found[:LONGEST]
    ]
    header = ["file", *(["what"] if labelled else []), "KL, nats", *shown]
    return [Table("Measurements that no other one beats", header, rows, len(found) - len(rows))]


def _speeds(data: Data) -> list[Table]:
    columns: list[Column] = [
        ("name", "contender", "text"),
        ("kind", "call", "text"),
        ("past_tokens", "past", "count"),
        ("new_tokens", "new", "count"),
        ("threads", "threads", "count"),
    ]
    found = []
    for i, record in enumerate(data["speeds"]):
        path = f"speeds.{i}.rows"
        table = _list(data, path, record["rows"], columns, _record_text(record))
        times = [
            [cell(data, f"{path}.{n}.milliseconds.{end}", "milliseconds") for end in ("median", "lower", "upper")]
            for n in range(len(table.rows))
        ]
        rows = [[*row, *ends] for row, ends in zip(table.rows, times, strict=True)]
        header = [*table.header, "median", "lower quartile", "upper quartile"]
        found.append(Table(table.caption, header, rows, table.left_out))
        if record["speedups"]:
            speedup: list[Column] = [
                ("kind", "call", "text"),
                ("tokens", "tokens", "count"),
                ("threads", "threads", "count"),
                ("speedup", "times as fast", "times"),
            ]
            caption = "This model against its baseline, median of the quotients within a round"
            found.append(_list(data, f"speeds.{i}.speedups", record["speedups"], speedup, caption))
    return found


def _record_text(record: Data) -> str:
    parts = (record["benchmark"], record["suite"], record["subject"], record["cpu"], record["date"])
    return f"{record['file']}: {', '.join(part for part in parts if part)}"


def _calibration(data: Data) -> list[Table]:
    forms = {
        "kl": "digits",
        "perplexity": "digits",
        "baseline_perplexity": "digits",
        "perplexity_increase": "change",
        "top1_agreement": "share",
        "delta_sparsity": "share",
        "qk_mac_sparsity": "share",
        "attn_mac_sparsity": "share",
        "kv_bytes_per_token": "plain bytes",
        "kv_bytes_read": "bytes",
        "seconds": "seconds",
    }
    reached = data["calibration"]["reached"]
    parts = list(reached)
    rows = [
        [name, *(cell(data, f"calibration.reached.{p}.{name}", form) if name in reached[p] else "–" for p in parts)]
        for name, form in forms.items()
        if any(name in reached[part] for part in parts)
    ]
    return [Table("Reached, by part of the text", ["score", *parts], rows)] if rows else []


def _layers(data: Data) -> Table:
    rows = []
    for i, layer in enumerate(data["model"]["layers"]):
        path = f"model.layers.{i}"
        ends = [cell(data, f"{path}.threshold.{end}", "digits") for end in (0, 1)] if layer["threshold"] else ["–", "–"]
        settings = layer["settings"]
        knobs = [
            cell(data, f"{path}.settings.{name}", "text") if name in settings else "–"
            for name in ("granularity", "delta_window", "sinks", "v_skip", "prefill", "cache_format")
        ]
        knobs.insert(1, cell(data, f"{path}.rule", "text"))
        heads = [cell(data, f"{path}.{name}", "text") for name in ("layer", "query_heads", "kv_heads", "head_size")]
        rows.append([*heads, *ends, *knobs])
    header = ["layer", "query heads", "KV heads", "head size", "θ from", "θ to", "granularity", "rule", "window"]
    header += ["sinks", "v_skip", "prefill", "cache"]
    return Table("Settings by layer", header, rows[:LONGEST], max(0, len(rows) - LONGEST))
