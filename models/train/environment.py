"""Process settings that must be in place before the interpreter starts.

glibc gives large blocks back to the kernel at every free; training frees and asks for the same megabytes thousands of
times, so the page faults cost up to half the speed. OpenMP threads that spin while they wait take the core from whoever
else needs it. Both are read from the environment at start-up, hence the restart.
"""

from __future__ import annotations

import os
import sys

SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # bytes; the largest value every glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",  # the thresholds hold for the main arena only
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": "1",  # torch.set_num_threads overrides it
    "MKL_NUM_THREADS": "1",
}
MARK = "DELTALLM_TRAIN_ENVIRONMENT"


def restart_with_settings() -> None:
    """Replace this process by itself with `SETTINGS` in its environment; the second time do nothing."""
    if os.environ.get(MARK) == "1" or not sys.platform.startswith("linux"):
        return
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    os.environ[MARK] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  # this very program again
