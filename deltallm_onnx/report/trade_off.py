"""Quality against what is saved: every measurement of calibrations and studies, and the front of those none beats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.json_files import number, read_object, text

#: What a point may say of itself beside its divergence, and whether less of it is better.
SAVINGS = {"kv_bytes_per_token": True, "kv_bytes_read": True, "delta_sparsity": False, "qk_mac_sparsity": False}
_OTHERS = ("perplexity", "perplexity_increase", "attn_mac_sparsity", "seconds", "tokens_per_second")
#: Lists of measurements, by their names in the files that have them.
_LISTS = ("search", "trials", "measurements", "points", "results")
#: Points of one file, at most.
_LONGEST = 5000
_DEEPEST = 3


def trade_off_section(files: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """Points of all files.

    Args:
        files: what each is, such as "study", and its path.

    Returns:
        JSON-ready: `saving`, the name of what is drawn against divergence, and `sources`, each with its points in the
        file's order; `on_front` marks those that no other point of any file beats in both.

    Raises:
        DeltaLLMError: for a file without measurements.
    """
    sources: list[dict[str, Any]] = [
        {"kind": kind, "file": path.name, "points": read_points(path, kind)} for kind, path in files
    ]
    points: list[dict[str, Any]] = [point for source in sources for point in source["points"]]
    saving = _saving(points)
    usable = [point for point in points if saving in point]
    for point, best in zip(usable, front([(p["kl"], _cost(p, saving)) for p in usable]), strict=True):
        point["on_front"] = best
    return {"saving": saving, "sources": sources}


def read_points(path: Path, what: str) -> list[dict[str, Any]]:
    """Measurements of a file: divergence in nats per token and at least one of SAVINGS."""
    data = read_object(path, f"a {what} file in JSON")
    entries = [entry for key in _LISTS for entry in _objects(data.get(key))][:_LONGEST]
    points = [point for entry in entries if (point := _point(entry)) is not None]
    if not points:
        raise DeltaLLMError(
            f"{path} holds no measurement with kl and one of {', '.join(SAVINGS)}: give the JSON file of a calibration "
            "or a study."
        )
    return points


def front(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other one beats: none is as good in both costs and better in one.

    Args:
        costs: two numbers per point, less is better.
    """
    best: list[bool] = [False] * len(costs)
    lowest = float("inf")
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for i in order:
        second = costs[i][1]
        if second < lowest:
            lowest = second
            # Points that are equal in both stand or fall together.
            for j in order:
                if costs[j] == costs[i]:
                    best[j] = True
    return best


def _saving(points: Sequence[Mapping[str, Any]]) -> str:
    """What to draw: the first of SAVINGS that most points have and in which they differ."""
    for name in SAVINGS:
        values = {point[name] for point in points if name in point}
        if len(values) > 1 and sum(name in point for point in points) * 2 >= len(points):
            return name
    return next(name for name in SAVINGS if any(name in point for point in points))


def _cost(point: Mapping[str, Any], saving: str) -> float:
    value = float(point[saving])
    return value if SAVINGS[saving] else -value


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _point(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    point: dict[str, Any] = {}
    for part in _nested(entry, _DEEPEST):
        for name in ("kl", *SAVINGS, *_OTHERS):
            value = number(part, name)
            if value is not None and name not in point:
                point[name] = value
    if "kl" not in point or not any(name in point for name in SAVINGS):
        return None
    label = next(
        (found for key in ("label", "family", "method", "name") if (found := text(entry, key)) is not None),
        _knobs(entry),
    )
    return point if label is None else {"label": label, **point}


def _knobs(entry: Mapping[str, Any]) -> str | None:
    """What a calibration changed from one measurement to the next."""
    window, predicted, factor = (number(entry, name) for name in ("window", "knob", "factor"))
    if window is None or predicted is None:
        return None
    scaled = "" if factor is None or factor == 1 else f", scales × {factor:.3g}"
    return f"window {window:g}, predicted kl {predicted:.3g}{scaled}"


def _nested(entry: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    """An object and the objects in it."""
    yield entry
    if depth > 0:
        for value in entry.values():
            if isinstance(value, dict):
                yield from _nested(value, depth - 1)
