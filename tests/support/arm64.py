"""ONNX Runtime for 64-bit ARM on this machine, under qemu (`make arm64`)."""

from __future__ import annotations

from pathlib import Path

from support import guest
from support.cpp_runner import CppRunner

ARM64 = Path(__file__).parents[2] / "build" / "arm64"
LIBRARY = ARM64 / "ops" / "libdeltallm_ops.so"
#: Processors without and with the dot-product instructions, and the kernels they get.
CPUS = {"cortex-a53": "neon", "cortex-a76": "neon_dotprod"}


def _qemu(cpu: str) -> tuple[str, ...]:
    assert (ARM64 / ".ready").is_file(), f"{ARM64} is missing: run 'make arm64'"
    assert LIBRARY.is_file(), f"{LIBRARY} is missing: run 'make arm64'"
    return (str(ARM64 / "tools" / "bin" / "qemu-aarch64"), "-cpu", cpu, "-L", str(ARM64 / "root"))


def arm64_runner(cpu: str) -> CppRunner:
    """examples/cpp with the libraries of that architecture."""
    (onnxruntime,) = (ARM64 / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.1.*")
    return CppRunner(ARM64 / "runner" / "deltallm_run", onnxruntime, LIBRARY, _qemu(cpu))


class Guest(guest.Guest):
    """An ARM64 Python under qemu. Starting it takes ten seconds.

    Args:
        folder: for the files of the requests.
        library: another operator library than that of `make arm64`.
    """

    def __init__(self, folder: Path, library: Path = LIBRARY) -> None:
        super().__init__(folder, library)

    def run(self, cpu: str) -> None:
        """Run all requests on one processor."""
        self.start([*_qemu(cpu), ARM64 / "root" / "usr" / "bin" / "python3.11"], [ARM64 / "site"])
