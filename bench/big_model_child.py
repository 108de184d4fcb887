"""The process that `bench.big_model` starts per step.

    python -m bench.big_model_child '{"make": "folder", "config": {...}}'
    python -m bench.big_model_child '{"model": "folder", "out": "model.onnx", "weights": "int4"}'

prints one JSON object. Without `weights` the model is only exported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.script import refusals
from deltallm_onnx import DeltaConfig, WeightFormat, convert
from deltallm_onnx.bench.peak_memory import peak_resident_bytes
from deltallm_onnx.export import export_model
from deltallm_onnx.preflight import stored_shapes


def make(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write a Llama with random weights in bfloat16, as they are published."""
    import torch  # noqa: PLC0415 - seconds that the other steps do not have to wait for
    import transformers  # noqa: PLC0415 - the same

    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**config), dtype=torch.bfloat16)
    made.save_pretrained(folder)
    return {"parameters": sum(parameter.numel() for parameter in made.parameters())}


def measure(model: Path, out: Path, weights: str | None) -> dict[str, Any]:
    """Export or convert.

    Returns:
        Wall and CPU time in seconds, imports included; the peak of resident memory, the float32 weights and the data
        file in bytes; and the relative error of the weights where they are stored in another format.
    """
    error = None
    if weights is None:
        export_model(model, out)
    else:
        asked = None if weights == "float32" else WeightFormat(weights)  # type: ignore[arg-type]  # one of its names
        stored = convert(model, out, DeltaConfig(), weights=asked, copy_library=False).weights
        error = None if stored is None else stored.relative_rms
    return {
        "seconds": round(time.perf_counter() - _BEGIN, 2),
        "cpu_seconds": round(time.process_time(), 2),
        "peak_resident_bytes": peak_resident_bytes(),
        "float32_bytes": 4 * sum(shape.size for shape in stored_shapes([model / "model.safetensors"]).values()),
        "data_bytes": out.with_name(f"{out.name}.data").stat().st_size,
        "relative_rms": error,
    }


def _main(request: str) -> None:
    arguments = json.loads(request)
    with refusals():
        if "make" in arguments:
            result = make(Path(arguments["make"]), arguments["config"])
        else:
            result = measure(Path(arguments["model"]), Path(arguments["out"]), arguments["weights"])
    print(json.dumps(result))


_BEGIN = time.perf_counter()

if __name__ == "__main__":
    _main(sys.argv[1])
