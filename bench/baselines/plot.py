"""One picture: divergence against bytes kept and against bytes read, all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.baselines.budgets import CALIBRATED, COSTS, DELTA, FAMILIES
from bench.pyplot import pyplot, save_svg

#: What is drawn above: measured values, and the value of a row of the record.
_PANELS = (("KL, whole window", 0), ("KL, last quarter of the window", 1))
_AXES = ("bytes kept per token and layer", "KiB read per decoded token, all layers")
#: Colours that differ for the colour-blind, too (Okabe and Ito); markers tell them apart in print.
_COLOURS = ("#000000", "#999999", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00")
_MARKERS = ("s", "D", "v", "^", "<", "P", "o", "*")


def points(record: Mapping[str, Any], family: str, cost: str, quarter: bool) -> list[tuple[float, float]]:
    """Cost and divergence of a family's settings, cheapest first; those of which another is better in both left out.

    Args:
        record: of the study.
        family: one of FAMILIES.
        cost: key of a result.
        quarter: divergence in the last quarter of the window.
    """
    rows = [row for row in record["results"] if row["family"] == family]
    found = sorted((float(row[cost]), float(row["kl_by_position"][-1] if quarter else row["kl"])) for row in rows)
    front: list[tuple[float, float]] = []
    for x, y in found:
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Write the SVG.

    Raises:
        DeltaLLMError: without matplotlib.
    """
    figure, axes = pyplot().subplots(2, 2, figsize=(10, 7.5), layout="constrained", sharey="row", sharex="col")
    for line, (label, quarter) in zip(axes, _PANELS, strict=True):
        for panel, cost, unit in zip(line, COSTS, (1, 1024), strict=True):
            for number, family in enumerate(FAMILIES):
                drawn = points(record, family, cost, bool(quarter))
                if drawn:
                    _draw_family(panel, family, number, [(x / unit, y) for x, y in drawn])
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(visible=True, linewidth=0.3)
        line[0].set_ylabel(f"{label}, nats")
    for panel, label in zip(axes[-1], _AXES, strict=True):
        panel.set_xlabel(label)
    axes[0][0].legend(fontsize=7, frameon=False)
    own = record["settings"]
    title = f"{own['model']}, {own['windows']} held-out windows of {own['tokens']} tokens; below and left is better"
    figure.suptitle(title, fontsize=9)
    save_svg(figure, path)


def _draw_family(panel: Any, family: str, number: int, drawn: Sequence[tuple[float, float]]) -> None:
    ours = family in {DELTA, CALIBRATED}
    x, y = zip(*drawn, strict=True)
    panel.plot(
        x,
        y,
        marker=_MARKERS[number],
        markersize=6 if ours else 4,
        linewidth=1.8 if ours else 1,
        color=_COLOURS[number],
        label=family,
    )
