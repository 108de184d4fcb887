"""The releases of ONNX Runtime that the operator library is run with: those of `make peers`, and this environment's."""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
from support import guest, peers

from deltallm_onnx.runtime import ops_library_path

OLDER = ("1.17.3", "1.20.1", "1.22.1", "1.24.4", "1.27.0")
NEWEST: str = onnxruntime.__version__


def version(release: str) -> tuple[int, ...]:
    """Releases in order: "1.9" comes before "1.17"."""
    return tuple(map(int, release.split(".")))


class Guest(guest.Guest):
    """A process with another release of ONNX Runtime, and with the operator library of this environment.

    Args:
        folder: for the files of the requests.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ops_library_path())

    def run(self, release: str) -> None:
        """Run all requests with one release."""
        self.start([sys.executable], [] if release == NEWEST else [peers.folder(f"onnxruntime-{release}")])
