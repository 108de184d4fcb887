"""ONNX Runtime for 64-bit ARM on this machine, under qemu (`make arm64`)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from support.cpp_runner import CppRunner

Array = npt.NDArray[Any]

ARM64 = Path(__file__).parents[2] / "build" / "arm64"
LIBRARY = ARM64 / "ops" / "libdeltallm_ops.so"
#: Processors without and with the dot-product instructions, and the kernels they get.
CPUS = {"cortex-a53": "neon", "cortex-a76": "neon_dotprod"}

#: Starting Python and ONNX Runtime takes ten seconds of its own; a busy machine takes several times that.
_TIMEOUT = 500


def _qemu(cpu: str) -> tuple[str, ...]:
    assert (ARM64 / ".ready").is_file(), f"{ARM64} is missing: run 'make arm64'"
    assert LIBRARY.is_file(), f"{LIBRARY} is missing: run 'make arm64'"
    return (str(ARM64 / "tools" / "bin" / "qemu-aarch64"), "-cpu", cpu, "-L", str(ARM64 / "root"))


def arm64_runner(cpu: str) -> CppRunner:
    """examples/cpp with the libraries of that architecture."""
    (onnxruntime,) = (ARM64 / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.1.*")
    return CppRunner(ARM64 / "runner" / "deltallm_run", onnxruntime, LIBRARY, _qemu(cpu))


class Guest:
    """One process under qemu: takes requests, runs them all, hands out what came back.

    Args:
        folder: for the files of the requests.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.version = ""
        self.refusals: dict[str, str] = {}
        self._requests: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        model: bytes | Path,
        arrays: Mapping[str, Array],
        *,
        ends: Sequence[int],
        axes: Mapping[str, Mapping[int, str]],
        outputs: Mapping[str, int | None],
        caches: Mapping[str, str],
        in_place: bool = True,
        library: bool = True,
        isa: str | None = None,
        threads: int = 1,
    ) -> None:
        """Ask for a sequence to be put through a model.

        Args:
            name: of the request; names its files.
            model: .onnx or .ort.
            arrays: inputs for the whole sequence, and the first pasts.
            ends: tokens before the end of each call.
            axes: by input, its axes that are cut for a call: "new" tokens or the "total" so far.
            outputs: the axis along which the calls' outputs are joined; None stacks them.
            caches: past → present.
            in_place: whether one buffer serves as both.
            library: whether the operator library is registered.
            isa: DELTALLM_ISA of the session.
            threads: intra-op threads.
        """
        path = model if isinstance(model, Path) else self.folder / f"{name}.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        np.savez(self.folder / f"{name}.in.npz", **arrays)
        self._requests.append(
            {
                "name": name,
                "model": str(path.resolve()),
                "library": str(LIBRARY) if library else None,
                "isa": isa,
                "threads": threads,
                "ends": [int(end) for end in ends],
                "axes": axes,
                "outputs": outputs,
                "caches": caches,
                "in_place": in_place,
            }
        )

    def run(self, cpu: str) -> None:
        """Run all requests on one processor."""
        (self.folder / "requests.json").write_text(json.dumps(self._requests), encoding="utf-8")
        # Each of its threads would spin for work.
        environment = {"PYTHONPATH": str(ARM64 / "site"), "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
        program = Path(__file__).with_name("arm64_program.py")
        done = subprocess.run(
            [*_qemu(cpu), str(ARM64 / "root" / "usr" / "bin" / "python3.11"), str(program), str(self.folder)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"on {cpu}: {done.stderr[-4000:]}"
        report = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        self.version, self.refusals = report["version"], report["refusals"]

    def result(self, name: str) -> dict[str, Array]:
        """Joined outputs and last caches of a request."""
        assert name not in self.refusals, self.refusals[name]
        with np.load(self.folder / f"{name}.out.npz", allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
