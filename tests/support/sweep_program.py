"""`deltallm-onnx` in a process of its own, in which something happens in the middle of a sweep.

    python sweep_program.py EVENT ARGUMENTS…

EVENT is one of
    kill=N           the process is killed by SIGKILL within its trial N, counted from 1
    interrupt=N      it gets the signal of Ctrl-C there
    meet=OWN,OTHER   after its first trial it makes the file OWN, and goes on when OTHER is there
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltallm_onnx.cli import main
from deltallm_onnx.sweep.measuring import TrialObjective

_PATIENCE = 60.0


def _in_trial(number: int, event: Callable[[], None]) -> None:
    """Let it happen while the trial is running: measured, not yet told to the storage."""
    original, count = TrialObjective.__call__, 0

    def called(self: TrialObjective, trial: Any) -> tuple[float, ...]:
        nonlocal count
        values = original(self, trial)
        count += 1
        if count == number:
            event()
        return values

    TrialObjective.__call__ = called  # type: ignore[method-assign]  # the point of this program


def _meet(own: Path, other: Path) -> None:
    own.touch()
    deadline = time.monotonic() + _PATIENCE
    while not other.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{other} never came")
        time.sleep(0.02)


def _prepare(event: str) -> None:
    kind, value = event.split("=", 1)
    if kind == "meet":
        own, other = map(Path, value.split(","))
        # In its second trial the first one is finished and told.
        _in_trial(2, lambda: _meet(own, other))
    elif kind == "kill":
        _in_trial(int(value), lambda: os.kill(os.getpid(), signal.SIGKILL))
    else:
        # A test runner in the background may have told its children to ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _in_trial(int(value), lambda: os.kill(os.getpid(), signal.SIGINT))


if __name__ == "__main__":
    _prepare(sys.argv[1])
    main(sys.argv[2:])
