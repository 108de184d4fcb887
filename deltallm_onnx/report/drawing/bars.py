"""Lengths of runs, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltallm_onnx.report.drawing.heat_maps import height
from deltallm_onnx.report.drawing.theme import SEQUENTIAL, Picture, new_figure


def run_lengths(runs: Mapping[str, Any]) -> Picture:
    """Of every layer, the share of tokens in runs of each length, stacked to one."""
    import matplotlib as mpl  # noqa: PLC0415  # an extra

    layers, bins = runs["layers"], runs["bins"]
    colours = mpl.colormaps[SEQUENTIAL]([i / (len(bins) - 1) for i in range(len(bins))])
    figure, axes = new_figure(0.4 + height(len(layers)))
    left = [0.0] * len(layers)
    places = list(range(len(layers)))
    for i, found in enumerate(bins):
        share = [100 * layer["share_by_bin"][i] for layer in layers]
        if any(share):
            axes.barh(places, share, left=left, color=colours[i], label=bin_text(found), height=0.8)
        left = [a + b for a, b in zip(left, share, strict=True)]
    axes.invert_yaxis()
    step = -(-len(layers) // 16)
    axes.set_yticks(places[::step], labels=[str(layer["layer"]) for layer in layers][::step])
    axes.set_xlim(0, 100)
    axes.set_ylabel("layer")
    what = "tokens" if runs["granularity"] == "row" else "elements"
    axes.set_xlabel(f"share of {what}, %")
    axes.grid(visible=False)
    columns = {
        "loc": "lower center",
        "bbox_to_anchor": (0.5, 1.0),
        "ncols": 4,
        "handlelength": 1.0,
        "columnspacing": 1.0,
    }
    axes.legend(title=f"{what} in runs of so many tokens", title_fontsize=8, **columns)
    title = "Run lengths by layer"
    means = ", ".join(f"{layer['mean']:.3g} in layer {layer['layer']}" for layer in layers)
    return Picture("run-lengths", title, f"{title}: mean run of {means} tokens.", figure)


def bin_text(found: Mapping[str, Any]) -> str:
    """A bin's lengths in words."""
    if found["to"] is None:
        return f"{found['from']} or more"
    return str(found["from"]) if found["from"] == found["to"] else f"{found['from']}–{found['to']}"
