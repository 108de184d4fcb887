"""Quality against savings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltallm_onnx.report.drawing.theme import INK, MARKERS, SERIES, Picture, legend_below, logarithmic, new_figure
from deltallm_onnx.report.trade_off import SAVINGS

_LABELS = {
    "kv_bytes_per_token": "kv_bytes_per_token, bytes",
    "kv_bytes_read": "kv_bytes_read, bytes",
    "delta_sparsity": "delta_sparsity, %",
    "qk_mac_sparsity": "qk_mac_sparsity, %",
}


def pareto(trade_off: Mapping[str, Any], here: Mapping[str, float] | None) -> Picture:
    """Every measurement, the front, and this model.

    Args:
        trade_off: the section.
        here: this model's divergence and savings, if they were measured.
    """
    figure, axes = new_figure(3.4)
    saving = trade_off["saving"]
    scale = 1.0 if SAVINGS[saving] else 100.0
    series = _series(trade_off)
    for i, (label, points) in enumerate(series.items()):
        x, y = [scale * point[saving] for point in points], [point["kl"] for point in points]
        style: dict[str, Any] = {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i % len(MARKERS)]}
        axes.scatter(x, y, s=14, alpha=0.7, linewidths=0, label=label, **style)
    best = sorted(
        (scale * point[saving], point["kl"])
        for source in trade_off["sources"]
        for point in source["points"]
        if point.get("on_front") and point["kl"] > 0
    )
    # Between two measurements nothing is known but that the better of them can be had.
    steps = "steps-post" if SAVINGS[saving] else "steps-pre"
    line: dict[str, Any] = {"color": INK, "linewidth": 1, "label": "front", "zorder": 1.5}
    axes.plot([x for x, _ in best], [y for _, y in best], drawstyle=steps, **line)
    if here is not None and "kl" in here and saving in here:
        style = {"marker": "*", "s": 130, "color": SERIES[1], "edgecolors": INK, "linewidths": 0.8, "zorder": 3}
        axes.scatter([scale * here[saving]], [here["kl"]], label="this model, on this text", **style)
    drawn = sum(map(len, series.values()))
    if drawn:
        logarithmic(axes)
        if SAVINGS[saving]:
            logarithmic(axes, "x")
    axes.set_xlabel(_LABELS[saving])
    axes.set_ylabel("KL, nats per token")
    legend_below(axes, columns=1)
    title = f"Divergence against {saving}"
    told = f"{title}: {drawn} measurements with a divergence, {len(best)} of them on the front."
    return Picture("trade-off", title, told, figure)


def _series(trade_off: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Points by what the legend calls them: the labels of a file where they are few, else the file.

    Points without any divergence, such as the dense model's, have no place on a logarithmic axis.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for source in trade_off["sources"]:
        points = [point for point in source["points"] if trade_off["saving"] in point and point["kl"] > 0]
        labels = {point.get("label") for point in points}
        # Every measurement of a calibration has settings of its own.
        named = None not in labels and len(labels) <= len(SERIES) and source["kind"] != "calibration"
        for point in points:
            name = str(point["label"]) if named else f"{source['kind']}: {source['file']}"
            found.setdefault(name, []).append(point)
    return found
