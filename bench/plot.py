"""One picture: how many times faster than ONNX Runtime's fastest attention, over the length of the context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.pyplot import pyplot, save_svg

#: Shortest prompt that is drawn: below it a call is mostly the cost of calling.
_SHORTEST = 16


def series(record: Mapping[str, Any], axis: str, threads: int = 1) -> dict[str, list[tuple[int, float, float, float]]]:
    """Points (tokens, median, lower and upper quartile) of every contender of ours against the fastest peer.

    Args:
        record: of the suite "decode" or "prompt".
        axis: "past_tokens" or "new_tokens".
        threads: which results.
    """
    found: dict[str, list[tuple[int, float, float, float]]] = {}
    for result in record["results"]:
        if result["threads"] != threads or result[axis] < _SHORTEST:
            continue
        for row in result["contenders"]:
            ratio = row["speedups"].get(row["fastest_peer"])
            if row["name"].startswith("ours ") and ratio is not None:
                point = (result[axis], ratio["median"], ratio["lower"], ratio["upper"])
                found.setdefault(row["name"].removeprefix("ours "), []).append(point)
    return found


def draw(decode: Mapping[str, Any], prompt: Mapping[str, Any], path: Path) -> None:
    """Write an SVG with a panel for decode steps and one for prompts.

    Raises:
        DeltaLLMError: without matplotlib.
    """
    figure, axes = pyplot().subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    panels = ((decode, "past_tokens", "decode: past tokens"), (prompt, "new_tokens", "prompt: tokens"))
    for panel, (record, axis, label) in zip(axes, panels, strict=True):
        for name, points in series(record, axis).items():
            tokens, median, lower, upper = zip(*points, strict=True)
            panel.plot(tokens, median, marker="o", markersize=3, linewidth=1.2, label=name)
            panel.fill_between(tokens, lower, upper, alpha=0.15, linewidth=0)
        panel.axhline(1, color="black", linewidth=0.8, linestyle=":")
        panel.set_xscale("log", base=2)
        measured = sorted({point[0] for points in series(record, axis).values() for point in points})
        panel.set_xticks(measured, labels=[str(count) for count in measured])
        panel.minorticks_off()
        panel.set_ylim(bottom=0)
        panel.set_xlabel(label)
        panel.set_ylabel("times as fast as the fastest GQA")
        panel.legend(fontsize=7, frameon=False)
    figure.suptitle(f"{decode['geometry']['name']}, one layer, one thread, {decode['cpu']}", fontsize=9)
    save_svg(figure, path)
