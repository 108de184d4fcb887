"""What a query head looks at with exact keys and with held ones, and how much of it moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.report.drawing.theme import DIVERGING, SEQUENTIAL, SERIES, Picture, new_figure

#: Shares below this are drawn as this: the scale is logarithmic.
_FAINTEST = 1e-4


def attention_map(data: Mapping[str, Any], tokens: int) -> Picture:
    """Four panels: both maps, their difference, and attention moved by query.

    Args:
        data: one of the attention section's maps.
        tokens: T.
    """
    from matplotlib.colors import LogNorm, SymLogNorm  # noqa: PLC0415  # an extra

    figure, ((exact, delta), (change, moved)) = new_figure(4.7, 2, 2)
    maps = [_square(data[name]) for name in ("exact", "delta")]
    extent = (0, tokens, tokens, 0)
    scale = LogNorm(_FAINTEST, 1.0, clip=True)
    for axes, values, title in ((exact, maps[0], "exact keys"), (delta, maps[1], "keys as read")):
        image = axes.imshow(values, cmap=SEQUENTIAL, norm=scale, extent=extent, interpolation="nearest")
        axes.set_title(title)
    _bar(figure, image, [exact, delta], [1e-4, 1e-2, 1], ["0.01 %", "1 %", "100 %"])
    difference = maps[1] - maps[0]
    largest = float(max(np.nanmax(np.abs(difference)), 1e-3))
    norm = SymLogNorm(1e-3, vmin=-largest, vmax=largest)
    image = change.imshow(difference, cmap=DIVERGING, norm=norm, extent=extent, interpolation="nearest")
    change.set_title("difference")
    _bar(figure, image, [change], [-largest, 0, largest], [f"−{100 * largest:.2g} %", "0", f"+{100 * largest:.2g} %"])
    for axes in (exact, delta, change):
        axes.grid(visible=False)
        # Between the ends of the axis, which alone have ticks.
        axes.set_xlabel("key", labelpad=-9)
        axes.set_ylabel("query", labelpad=-14)
        axes.set_xticks([0, tokens])
        axes.set_yticks([0, tokens])
    moved.plot([100 * value for value in data["moved_by_query"]], color=SERIES[1], linewidth=1)
    moved.set_title("attention moved, %")
    moved.set_xlabel("query")
    moved.set_ylim(bottom=0)
    title = f"Attention of layer {data['layer']}, query head {data['head']}"
    told = (
        f"{title}: maps over {tokens} tokens with exact keys and with the keys decoding reads, their difference, and "
        f"the share of attention that moves, {100 * data['moved_mean']:.2g} % in the mean over queries."
    )
    return Picture(f"attention-{data['layer']}-{data['head']}", title, told, figure)


def _square(rows: list[list[float]]) -> npt.NDArray[np.float64]:
    """Lower triangle to a square without a number above the diagonal."""
    square = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        square[i, : len(row)] = row
    return square


def _bar(figure: Any, image: Any, axes: list[Any], ticks: list[float], labels: list[str]) -> None:
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40 if len(axes) > 1 else 20, pad=0.03)
    bar.outline.set_visible(False)
    bar.set_ticks(ticks, labels=labels, minor=False)
    bar.ax.minorticks_off()
