"""What runs under another release of ONNX Runtime: models put through recorded calls. Imports no torch.

Called as a program with a file of jobs, see `main`; support.peers chooses the release.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Arrays = dict[str, npt.NDArray[Any]]

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def save_calls(path: Path, calls: list[Arrays]) -> None:
    """Write the feeds of calls that follow each other, or what came out of them."""
    np.savez(path, **{f"{number}/{name}": array for number, call in enumerate(calls) for name, array in call.items()})


def load_calls(path: Path) -> list[Arrays]:
    """What `save_calls` wrote."""
    calls: list[Arrays] = []
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            number, _, name = key.partition("/")
            calls += [{} for _ in range(int(number) + 1 - len(calls))]
            calls[int(number)][name] = arrays[key]
    return calls


def run_calls(session: onnxruntime.InferenceSession, calls: list[Arrays]) -> list[Arrays]:
    """The outputs of each call. Caches that a call does not bring are the last call's, empty in the first."""
    names = [output.name for output in session.get_outputs()]
    last: Arrays = {}
    results = []
    for call in calls:
        feeds = {}
        for given in session.get_inputs():
            if given.name in call:
                feeds[given.name] = call[given.name]
            elif last:
                feeds[given.name] = last[given.name.replace("past_key_values.", "present.")]
            else:
                B = call["input_ids"].shape[0]
                feeds[given.name] = np.zeros((B, given.shape[1], 0, given.shape[3]), _TYPES[given.type])
        last = dict(zip(names, session.run(None, feeds), strict=True))
        results.append(last)
    return results


def main(jobs: Path) -> None:
    """Do the jobs of a JSON list of {"model", "library", "calls", "out"}; print, per job, "ok" or the refusal.

    `library` is the operator library to register, or null; `calls` and `out` are .npz files of `save_calls`.
    """
    onnxruntime.set_default_logger_severity(4)
    states = []
    for job in json.loads(jobs.read_text()):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if job["library"]:
            options.register_custom_ops_library(job["library"])
        try:
            session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - the releases have no class of their own for this
            states.append(str(error))
            continue
        save_calls(Path(job["out"]), run_calls(session, load_calls(Path(job["calls"]))))
        states.append("ok")
    print(json.dumps({"version": onnxruntime.__version__, "states": states}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
