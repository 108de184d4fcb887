"""Programs of tests/support run in child processes that see other versions of our dependencies (`make peers`)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def folder(name: str) -> Path:
    """Where `make peers` put a set of packages: "optimum" or "onnxruntime-<version>"."""
    path = _ROOT / "build" / "peers" / name
    assert (path / ".ready").is_file(), f"{path} is missing: run 'make peers'"
    return path


def run(name: str, module: str, arguments: Sequence[str | Path], timeout: float = 500) -> str:
    """Run `python -m support.<module>` with a peer's packages before those of this environment; its output.

    Args:
        name: of the peer, see `folder`.
        module: of tests/support.
        arguments: of the program.
        timeout: in seconds.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(folder(name)), str(_ROOT / "tests")]),
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-m", f"support.{module}", *map(str, arguments)]
    done = subprocess.run(command, env=environment, timeout=timeout, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{module} with {name} failed:\n{done.stderr[-4000:]}"
    return done.stdout
