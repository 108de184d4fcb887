"""Sequences put through models by another Python than this one: another processor's, or with another ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: What runs there: a program that imports numpy and onnxruntime alone.
_PROGRAM = Path(__file__).with_name("guest_program.py")
#: On a busy machine, under qemu, starting takes a minute.
_TIMEOUT = 500


@dataclasses.dataclass(frozen=True)
class Output:
    """A graph output as the session describes it; no dimensions also stand for an unknown shape."""

    type: str
    shape: tuple[int | str | None, ...]


class Guest:
    """One process: takes requests, runs them all, hands out what came back.

    Args:
        folder: for the files of the requests.
        library: operator library of that processor.
    """

    def __init__(self, folder: Path, library: Path) -> None:
        self.folder = folder
        self.version = ""
        self.refusals: dict[str, str] = {}
        self._library = library
        self._requests: list[dict[str, Any]] = []
        self._outputs: dict[str, dict[str, Output]] = {}

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
                "library": str(self._library) if library else None,
                "isa": isa,
                "threads": threads,
                "ends": [int(end) for end in ends],
                "axes": axes,
                "outputs": outputs,
                "caches": caches,
                "in_place": in_place,
            }
        )

    def start(self, python: Sequence[str | Path], packages: Sequence[Path]) -> None:
        """Run all requests.

        Args:
            python: the interpreter, with what starts it.
            packages: folders that are searched before its own.
        """
        (self.folder / "requests.json").write_text(json.dumps(self._requests), encoding="utf-8")
        environment = {
            "PYTHONPATH": os.pathsep.join(map(str, packages)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "1",
            "OPENBLAS_NUM_THREADS": "1",  # each of its threads would spin for work
        }
        done = subprocess.run(
            [*map(str, python), str(_PROGRAM), str(self.folder)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == 0, f"{python}: {done.stderr[-4000:]}"
        report = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        self.version, self.refusals = report["version"], report["refusals"]
        self._outputs = {
            request: {name: Output(kind, tuple(shape)) for name, kind, shape in outputs}
            for request, outputs in report["outputs"].items()
        }

    def outputs(self, name: str) -> dict[str, Output]:
        """What the session of a request says of its outputs."""
        assert name not in self.refusals, self.refusals[name]
        return self._outputs[name]

    def result(self, name: str) -> dict[str, Array]:
        """Joined outputs and last caches of a request."""
        assert name not in self.refusals, self.refusals[name]
        with np.load(self.folder / f"{name}.out.npz", allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
