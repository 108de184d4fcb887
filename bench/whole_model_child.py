"""The process that `bench.whole_model` starts per variant to see its memory; one JSON argument, one JSON object out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.script import refusals
from bench.whole_model import CONFIGS, VARIANTS, Variant
from deltallm_onnx.bench import peak_resident_bytes, resident_bytes
from deltallm_onnx.runtime import DecoderModel

_STEPS = 3


def main() -> None:
    request = json.loads(sys.argv[1])
    with refusals():
        model = DecoderModel(Path(request["model"]), threads=1)
        attention, config = VARIANTS[request["variant"]], CONFIGS[request["config"]]
        variant = Variant(model, attention, config, past=request["past"], steps=_STEPS, threads=1)
        for _ in range(_STEPS):
            variant.step()
    memory = {"peak_resident_bytes": peak_resident_bytes(), "resident_bytes": resident_bytes()}
    print(json.dumps({**memory, "kv_bytes": variant.cache.bytes_allocated}))


if __name__ == "__main__":
    main()
