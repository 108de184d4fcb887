"""Exports and generation of optimum-onnx, whose transformers is older than ours: support.optimum_program's caller."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from support import peers
from support.optimum_program import ERROR_SUFFIX

PEER = "optimum"


@dataclasses.dataclass(frozen=True)
class Generated:
    """What `ORTModelForCausalLM` said, greedily.

    Attributes:
        tokens: int64 [rows, 64].
        logits: float32 [64, rows, vocabulary] each was chosen from.
    """

    tokens: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


def export(names: Sequence[str], folder: Path) -> None:
    """Export tiny models by support.optimum_models' names, each into a folder of its name: see optimum_program."""
    peers.run(PEER, "optimum_program", ["export", folder, *names])


def generate(jobs: Sequence[tuple[Path, bool, Path]], folder: Path) -> None:
    """Generate for each (model folder, whether the library is registered, file for the result).

    Args:
        jobs: what to do, in one process.
        folder: for scratch.
    """
    listed = [{"model": str(model), "library": library, "out": str(out)} for model, library, out in jobs]
    (folder / "jobs.json").write_text(json.dumps(listed))
    peers.run(PEER, "optimum_program", ["generate", folder / "jobs.json"])


def generated(out: Path) -> Generated:
    """The result of a job."""
    refuse_failure(out)
    with np.load(out, allow_pickle=False) as arrays:
        return Generated(arrays["tokens"], arrays["logits"])


def refuse_failure(out: Path) -> None:
    """Raise what the process caught in the place of `out`, if it did."""
    failure = out.with_name(out.name + ERROR_SUFFIX)
    assert not failure.exists(), failure.read_text()
