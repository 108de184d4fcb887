"""Numbers by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deltallm_onnx.report.drawing.theme import SEQUENTIAL, Picture, new_figure

#: Heads and layers of a map whose cells have room for their numbers.
_NUMBERED = (8, 16)
_TALLEST = 8.0
_DARK, _BRIGHT = "#0b0b0b", "#fdfdfd"


def heat_map(
    name: str,
    title: str,
    values: Sequence[Sequence[float]],
    layers: Sequence[int],
    *,
    heads: str,
    share: bool = True,
    whole: bool = True,
) -> Picture:
    """One cell per layer and head.

    Args:
        name: of the picture.
        title: of the picture.
        values: by layer and head; layers may differ in their number of heads.
        layers: numbers of the layers.
        heads: what the columns are, such as "KV head".
        share: shares from 0 to 1, in per cent; else numbers with a scale of their own.
        whole: the scale of shares ends at 100 %, not at the largest of them.
    """
    width = max(len(row) for row in values)
    cells = np.full((len(values), width), np.nan)
    for i, row in enumerate(values):
        cells[i, : len(row)] = row
    figure, axes = new_figure(height(len(values)))
    top = 1.0 if whole else max(float(np.nanmax(cells)), 1e-9)
    limits: dict[str, Any] = {"vmin": 0.0, "vmax": top} if share else {}
    image = axes.pcolormesh(cells, cmap=SEQUENTIAL, **limits)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel(heads)
    axes.set_ylabel("layer")
    _ticks(axes.xaxis, list(range(width)))
    _ticks(axes.yaxis, list(layers))
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=10 * height(len(values)))
    bar.outline.set_visible(False)
    if share:
        bar.set_ticks([0, top / 2, top], labels=[f"{100 * tick:.3g} %" for tick in (0, top / 2, top)])
    if width <= _NUMBERED[0] and len(values) <= _NUMBERED[1]:
        _write_numbers(axes, cells, image, share=share)
    return Picture(name, title, _told(title, values, layers, heads, share=share), figure)


def height(layers: int) -> float:
    """Inches of a picture with a row per layer, lower rows where there are many."""
    return min(1.3 + 0.22 * min(layers, 12) + 0.1 * max(layers - 12, 0), _TALLEST)


def _ticks(axis: Any, labels: list[int]) -> None:
    """Labels in the middle of cells, at most about sixteen of them."""
    step = -(-len(labels) // 16)
    axis.set_ticks([i + 0.5 for i in range(0, len(labels), step)], labels=[str(n) for n in labels[::step]])
    axis.set_tick_params(length=0)


def _write_numbers(axes: Any, cells: Any, image: Any, *, share: bool) -> None:
    for (i, j), value in np.ndenumerate(cells):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
            colour = _DARK if bright else _BRIGHT
            written = value_text(value, share=share).removesuffix(" %")
            axes.text(j + 0.5, i + 0.5, written, ha="center", va="center", fontsize=7.5, color=colour)


def _told(title: str, values: Sequence[Sequence[float]], layers: Sequence[int], heads: str, *, share: bool) -> str:
    places = [(value, layer, head) for layer, row in zip(layers, values, strict=True) for head, value in enumerate(row)]
    low, high = min(places), max(places)
    ends = [f"{value_text(value, share=share)} in layer {layer}, {heads} {head}" for value, layer, head in (low, high)]
    return (
        f"Heat map: {title}, {len(values)} layers by up to {max(map(len, values))} heads, from {ends[0]} to {ends[1]}."
    )


def value_text(value: float, *, share: bool) -> str:
    """As it is written in a cell."""
    return f"{100 * value:.1f} %" if share else f"{value:.4g}"
