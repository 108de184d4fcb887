"""What runs in ARM64's Python under qemu: sequences put through models, split into calls; needs no package of ours.

Called with a folder, see `main`; support.arm64 writes what it reads.
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


def run(folder: Path, request: dict[str, Any]) -> None:
    """All calls of one request in one session; writes NAME.out.npz."""
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


def refusal_of(folder: Path, request: dict[str, Any]) -> str:
    """Run a request; "" if nothing was wrong."""
    try:
        run(folder, request)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions share no base class
        return " ".join(str(error).split())
    return ""


def main(folder: Path) -> None:
    """Do the requests of FOLDER/requests.json; the refusals, by name, go to FOLDER/done.json."""
    refusals = {}
    for request in json.loads((folder / "requests.json").read_text()):
        refusal = refusal_of(folder, request)
        if refusal:
            refusals[request["name"]] = refusal
    (folder / "done.json").write_text(json.dumps({"version": onnxruntime.__version__, "refusals": refusals}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
