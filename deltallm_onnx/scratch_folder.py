"""Temporary folders for large files beside an output: gone when their block ends, or when the next one is made."""

from __future__ import annotations

import contextlib
import glob
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what killed processes leave there stays
    fcntl = None  # type: ignore[assignment]  # looked at before every use

_SUFFIX = ".partial"
_LOCK = "in-use"


@contextlib.contextmanager
def scratch_folder(parent: Path, kind: str) -> Iterator[Path]:
    """A fresh folder in `parent` while the block runs.

    What processes left there that were killed is removed first. A folder belongs to a living process as long as its
    lock is held, which the system lets go of however the process ends; processes of other machines count too, as far as
    the file system has locks.

    Args:
        parent: an existing folder, on a file system with room.
        kind: of the files, or the name of the one that is made: part of the folder's name. Folders of other kinds are
            left alone.
    """
    prefix = f".{kind}."
    for other in parent.glob(f"{glob.escape(prefix)}*{_SUFFIX}"):
        _remove_if_left(other)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=_SUFFIX, dir=parent, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        new = folder / f"{_LOCK}.new"
        with new.open("wb") as lock:
            # A file system without locks has none held either: the folder then stays if this process is killed.
            with contextlib.suppress(OSError):
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    # Under its own name it is there only when held: nobody takes a folder that is just being made.
                    new.rename(folder / _LOCK)
            yield folder


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a process that has ended; one that cannot be told or removed stays."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), (folder / _LOCK).open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
