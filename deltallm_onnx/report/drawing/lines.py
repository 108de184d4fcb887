"""Quality by position, bytes by context length, times by context length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.report.drawing.theme import (
    DASHES,
    MARKERS,
    MUTED,
    SERIES,
    Picture,
    legend_below,
    logarithmic,
    new_figure,
)

_KB = 1000


def divergence_by_position(quality: Mapping[str, Any]) -> Picture:
    """KL divergence with its interval, one point per bucket of positions."""
    figure, axes = new_figure(2.8)
    buckets = quality["by_position"]
    places = list(range(len(buckets)))
    means = [bucket["kl"] for bucket in buckets]
    intervals = [bucket["kl_interval"] or [bucket["kl"]] * 2 for bucket in buckets]
    spread = [
        [max(mean - low, 0.0) for mean, (low, _) in zip(means, intervals, strict=True)],
        [max(high - mean, 0.0) for mean, (_, high) in zip(means, intervals, strict=True)],
    ]
    axes.bar(places, means, width=0.62, color=SERIES[0])
    axes.errorbar(places, means, yerr=spread, fmt="none", ecolor=MUTED, capsize=3, linewidth=1.2)
    _positions(axes, buckets)
    axes.set_ylabel("KL, nats per token")
    axes.set_ylim(bottom=0)
    title = "Divergence from the dense model by position"
    told = f"{title}: {_listed(buckets, 'kl')} nats per token; 95 % intervals over windows as whiskers."
    return Picture("quality-kl", title, told, figure)


def perplexity_by_position(quality: Mapping[str, Any]) -> Picture:
    """Perplexity of the model, and of the dense one where it is known."""
    figure, axes = new_figure(2.8)
    buckets = quality["by_position"]
    # The second line lies on the first one where nothing is lost, and both must be seen.
    styles: dict[str, dict[str, Any]] = {
        "baseline_perplexity": {"label": "dense model", "color": SERIES[4], "linewidth": 5, "solid_capstyle": "round"},
        "perplexity": {"label": "this model", "color": SERIES[1], "marker": "o", "linestyle": "--"},
    }
    for key, style in styles.items():
        if key in buckets[0]:
            axes.plot([bucket[key] for bucket in buckets], **style)
    _positions(axes, buckets)
    axes.set_ylabel("perplexity")
    axes.legend()
    title = "Perplexity by position"
    return Picture("quality-perplexity", title, f"{title} of this model: {_listed(buckets, 'perplexity')}.", figure)


def cache_growth(cache: Mapping[str, Any]) -> Picture:
    """Bytes measured, and bytes of plain formats by arithmetic, over the length of the context."""
    figure, axes = new_figure(3.3)
    points = cache["points"]
    tokens = [point["tokens"] for point in points]
    for i, (name, per_token) in enumerate(cache["plain_bytes_per_token"].items()):
        size = [per_token * count / _KB for count in tokens]
        axes.plot(tokens, size, color=SERIES[6], linestyle=DASHES[i], linewidth=1.1, label=f"{name}, nothing held")
    for key, label, colour, marker in (
        ("allocated", "allocated", SERIES[4], "s"),
        ("in_use", "in use", SERIES[1], "o"),
    ):
        axes.plot(tokens, [point[key] / _KB for point in points], color=colour, marker=marker, label=label)
    _lengths(axes, tokens)
    logarithmic(axes)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("keys and values, kB")
    legend_below(axes)
    last = points[-1]
    title = "Cache bytes against context length"
    told = (
        f"{title}: {byte_text(last['in_use'])} in use and {byte_text(last['allocated'])} allocated at "
        f"{last['tokens']} tokens."
    )
    return Picture("cache-bytes", title, told, figure)


def times(record: Mapping[str, Any], number: int, kind: str, threads: int) -> Picture:
    """Milliseconds per call of every contender of a run record.

    Args:
        record: one of the speeds section's.
        number: of the record, for names.
        kind: "decode" or "prefill".
        threads: which rows.
    """
    figure, axes = new_figure(3.6)
    axis = "past_tokens" if kind == "decode" else "new_tokens"
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for row in record["rows"]:
        if (row["kind"], row["threads"]) == (kind, threads):
            spread = row["milliseconds"]
            point = (row[axis], spread["median"], spread["lower"], spread["upper"])
            lines.setdefault(row["name"], []).append(point)
    for i, (name, points) in enumerate(lines.items()):
        tokens, median, lower, upper = zip(*sorted(points), strict=True)
        style = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(tokens, median, label=name, linestyle=DASHES[(i // len(SERIES)) % len(DASHES)], **style)
        axes.fill_between(tokens, lower, upper, color=style["color"], alpha=0.15, linewidth=0)
    _lengths(axes, sorted({point[0] for points in lines.values() for point in points}))
    logarithmic(axes)
    axes.set_xlabel("tokens in the cache" if kind == "decode" else "tokens of the prompt")
    axes.set_ylabel("milliseconds per call")
    legend_below(axes)
    subject = f"{record['subject']}, " if record["subject"] else ""
    plural = "threads" if threads > 1 else "thread"
    title = f"Time of a {'decode step' if kind == 'decode' else 'prompt'}: {subject}{threads} {plural}"
    return Picture(
        f"speed-{number}-{kind}-{threads}", title, f"{title}, of {', '.join(lines)}; quartiles shaded.", figure
    )


def _positions(axes: Any, buckets: Sequence[Mapping[str, Any]]) -> None:
    labels = [f"{bucket['from']}–{bucket['to']}" for bucket in buckets]
    axes.set_xticks(range(len(buckets)), labels=labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_xlabel("tokens before the predicted one")


def _lengths(axes: Any, tokens: Sequence[int]) -> None:
    """A logarithmic axis that names what was measured."""
    axes.set_xscale("log", base=2)
    shown = tokens[:: -(-len(tokens) // 7)]
    axes.set_xticks(shown, labels=[str(count) for count in shown])
    axes.xaxis.set_tick_params(which="minor", bottom=False)


def _listed(buckets: Sequence[Mapping[str, Any]], key: str) -> str:
    return ", ".join(f"{bucket[key]:.3g} at {bucket['from']}–{bucket['to']}" for bucket in buckets)
