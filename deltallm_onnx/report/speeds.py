"""Speeds that were recorded before: run records of `deltallm-onnx bench` and of the scripts in bench/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.json_files import number, read_object, section, text

#: Rows that are taken from one record, at most.
_LONGEST = 400


def read_record(path: Path) -> dict[str, Any]:
    """The timings of one run record.

    Returns:
        JSON-ready: what was measured where, and `rows`, each with past tokens, new tokens, threads, the contender's
        name and milliseconds per call (median and quartiles); `speedups` of a model over its baseline.

    Raises:
        DeltaLLMError: for a file that is no run record with timings.
    """
    record = read_object(path, "a run record, as 'deltallm-onnx bench --json' writes it")
    results = record.get("results")
    entries = [entry for entry in results if isinstance(entry, dict)] if isinstance(results, list) else []
    rows = [row for entry in entries for row in (*_of_two_models(entry), *_of_contenders(entry))][:_LONGEST]
    if not rows:
        raise DeltaLLMError(
            f"{path} holds no timings this report knows: give a run record, as 'deltallm-onnx bench --json' writes it."
        )
    return {
        "file": path.name,
        "benchmark": text(record, "benchmark") or "benchmark",
        "suite": text(record, "suite"),
        "subject": text(section(record, "model"), "name") or text(section(record, "geometry"), "name"),
        "cpu": text(record, "cpu"),
        "date": text(record, "date"),
        "load": number(record, "load"),
        "rows": rows,
        "speedups": [speedup for entry in entries for speedup in _speedups(entry)],
    }


def _of_two_models(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a record of `deltallm-onnx bench`: decode and prefill of a model and its baseline."""
    rows = []
    past = number(entry, "past_tokens")
    for what in ("decode", "prefill"):
        for name in ("model", "baseline"):
            found = section(section(entry, what), name)
            timing = _timing(section(found, "seconds"), 1e3)
            if timing is None or past is None:
                continue
            places = (past, 1) if what == "decode" else (0, past)
            rows.append({"kind": what, **_places(*places), "threads": _threads(entry), "name": name, **timing})
    return rows


def _speedups(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a record of `deltallm-onnx bench`: how many times as fast as its baseline the model is."""
    past, found = number(entry, "past_tokens"), []
    for what in ("decode", "prefill"):
        median = number(section(section(entry, what), "speedup"), "median")
        if median is not None and past is not None:
            found.append({"kind": what, "tokens": int(past), "threads": _threads(entry), "speedup": median})
    return found


def _of_contenders(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a record of bench/: one row per contender."""
    contenders = entry.get("contenders")
    past, new = number(entry, "past_tokens"), number(entry, "new_tokens")
    rows: list[dict[str, Any]] = []
    if not isinstance(contenders, list) or past is None:
        return rows
    new = 1 if new is None else new
    for contender in contenders:
        if not isinstance(contender, dict):
            continue
        timing = _timing(section(contender, "milliseconds"), 1.0) or _timing(section(contender, "microseconds"), 1e-3)
        name = text(contender, "name")
        if timing is None or name is None:
            continue
        kind = "decode" if new == 1 else "prefill"
        rows.append({"kind": kind, **_places(past, new), "threads": _threads(entry), "name": name, **timing})
    return rows


def _timing(spread: Mapping[str, Any], scale: float) -> dict[str, Any] | None:
    """Median and quartiles in milliseconds, of numbers times `scale`."""
    median, lower, upper = (number(spread, key) for key in ("median", "lower", "upper"))
    if median is None or median <= 0:
        return None
    ends = {"lower": lower, "upper": upper}
    quartiles = {key: (median if value is None else value) * scale for key, value in ends.items()}
    return {"milliseconds": {"median": median * scale, **quartiles}}


def _threads(entry: Mapping[str, Any]) -> int:
    return int(number(entry, "threads") or 1)


def _places(past: float, new: float) -> dict[str, int]:
    return {"past_tokens": int(past), "new_tokens": int(new)}
