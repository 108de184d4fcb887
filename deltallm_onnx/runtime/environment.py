"""What a timing was taken on: the part of a run record that every benchmark shares."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

_PACKAGES = ("deltallm-onnx", "onnxruntime", "numpy", "onnx")


def environment() -> dict[str, Any]:
    """Date, processor, load, instruction set and versions, JSON-ready."""
    return {
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "isa": os.environ.get("DELTALLM_ISA") or "best supported",
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
