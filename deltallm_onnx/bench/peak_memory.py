"""Resident memory of a process, and how to measure it in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError


def peak_resident_bytes() -> int:
    """The largest resident set of this process since it was started, in bytes.

    Read from VmHWM where there is one: `ru_maxrss` of a child begins with the size of its parent on Linux.
    """
    from_status = _status_bytes("VmHWM")
    if from_status is not None:
        return from_status
    import resource  # noqa: PLC0415  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """The resident set of this process now, in bytes; None where the system does not say.

    Opening a model takes more memory for a moment than running it: beside the peak this shows what stays.
    """
    return _status_bytes("VmRSS")


def _status_bytes(field: str) -> int | None:
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def run_child(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a module in a fresh interpreter with one JSON argument; its stdout is one JSON object.

    Args:
        module: run with -m.
        request: JSON-ready.

    Raises:
        DeltaLLMError: with the child's sentence if it refused (exit code 2), and where it was killed.
        RuntimeError: where it broke in any other way.
    """
    done = subprocess.run(  # noqa: S603  # our own interpreter and our own module
        [sys.executable, "-m", module, json.dumps(request)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(done.stdout)
        return result
    said = done.stderr.strip().splitlines()
    if done.returncode == 2 and said:
        raise DeltaLLMError(said[-1].removeprefix("error: "))
    if done.returncode < 0:
        raise DeltaLLMError(
            f"The process that measured the memory of {json.dumps(request)} was ended by signal {-done.returncode}: "
            "it probably needs more memory than there is, so measure a shorter past."
        )
    raise RuntimeError(f"{module} left with {done.returncode}: {done.stderr.strip()[-2000:]}")
