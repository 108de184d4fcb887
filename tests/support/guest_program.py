"""What a guest runs: sequences put through models, split into calls. Needs numpy and onnxruntime, no package of ours.

Called with a folder, see `main`; support.guest writes what it reads.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]


def part(array: Array, axes: dict[str, str], begin: int, end: int) -> Array:
    """The columns of a call: those of its new tokens ("new") or of all tokens so far ("total")."""
    index = [slice(None)] * array.ndim
    for axis, columns in axes.items():
        index[int(axis)] = slice(begin if columns == "new" else 0, end)
    return np.ascontiguousarray(array[tuple(index)])


def run(folder: Path, request: dict[str, Any]) -> list[tuple[str, str, list[Any]]]:
    """All calls of one request in one session; writes NAME.out.npz. Name, type and shape of the session's outputs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.log_severity_level = 4
    if request["library"]:
        options.register_custom_ops_library(request["library"])
    os.environ.pop("DELTALLM_ISA", None)
    if request["isa"]:
        os.environ["DELTALLM_ISA"] = request["isa"]
    session = onnxruntime.InferenceSession(str(folder / request["model"]), options, providers=["CPUExecutionProvider"])
    with np.load(folder / f"{request['name']}.in.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    caches = {past: onnxruntime.OrtValue.ortvalue_from_numpy(arrays.pop(past)) for past in request["caches"]}
    joined: dict[str, list[Array]] = {name: [] for name in request["outputs"]}
    begin = 0
    for end in request["ends"]:
        binding = session.io_binding()
        feeds = {name: part(array, request["axes"].get(name, {}), begin, end) for name, array in arrays.items()}
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in request["outputs"]:
            binding.bind_output(name, "cpu")
        for past, present in request["caches"].items():
            binding.bind_ortvalue_input(past, caches[past])
            if request["in_place"]:
                binding.bind_ortvalue_output(present, caches[past])
            else:
                binding.bind_output(present, "cpu")
        session.run_with_iobinding(binding)
        results = binding.get_outputs()  # in the order of binding
        for parts, value in zip(joined.values(), results, strict=False):
            parts.append(value.numpy())
        if not request["in_place"]:
            caches = dict(zip(caches, results[len(joined) :], strict=True))
        begin = end
    last = {request["caches"][past]: value.numpy() for past, value in caches.items()}
    outputs = {
        name: np.stack(parts) if request["outputs"][name] is None else np.concatenate(parts, request["outputs"][name])
        for name, parts in joined.items()
    }
    np.savez(folder / f"{request['name']}.out.npz", **outputs, **last)
    return [(output.name, output.type, output.shape) for output in session.get_outputs()]


def outputs_or_refusal(folder: Path, request: dict[str, Any]) -> list[tuple[str, str, list[Any]]] | str:
    """Run a request; what was wrong, if something was."""
    try:
        return run(folder, request)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return " ".join(str(error).split())


def main(folder: Path) -> None:
    """Do the requests of FOLDER/requests.json; outputs and refusals, by name, go to FOLDER/done.json."""
    report: dict[str, Any] = {"version": onnxruntime.__version__, "outputs": {}, "refusals": {}}
    for request in json.loads((folder / "requests.json").read_text()):
        answer = outputs_or_refusal(folder, request)
        report["refusals" if isinstance(answer, str) else "outputs"][request["name"]] = answer
    (folder / "done.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
