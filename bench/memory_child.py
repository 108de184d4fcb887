"""The process that `bench.memory` starts per setting; one JSON argument, one JSON object out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from bench.script import refusals
from deltallm_onnx.bench import clock, peak_resident_bytes, resident_bytes
from deltallm_onnx.runtime import DecoderModel
from deltallm_onnx.runtime.session_settings import SessionSettings

_SEED = 20250730


def main() -> None:
    request = json.loads(sys.argv[1])
    context, chunk, steps = request["context"], request["chunk"], request["steps"]
    tokens = np.random.default_rng(_SEED).integers(0, request["vocabulary"], (1, context))
    prompt = context - steps
    before = resident_bytes() or 0
    with refusals():
        settings = SessionSettings(**request["settings"])
        model = DecoderModel(Path(request["model"]), threads=request["threads"], settings=settings)
        opened = peak_resident_bytes()
        cache = model.new_cache(limit=context)
        now = clock(request["threads"])
        seconds = [now()]
        for begin in range(0, prompt, chunk):
            model.step(tokens[:, begin : min(begin + chunk, prompt)], cache)
        seconds.append(now())
        for position in range(prompt, context):
            model.step(tokens[:, position : position + 1], cache)
        seconds.append(now())
    resident = resident_bytes() or 0
    result = {
        "before_bytes": before,
        "opened_peak_bytes": opened - before,
        # The system adds up the counts of its processors now and then: the peak may lag behind what is there.
        "peak_bytes": max(peak_resident_bytes(), resident) - before,
        "resident_bytes": resident - before,
        "kv_bytes": cache.bytes_allocated,
        "prompt_tokens_per_second": prompt / (seconds[1] - seconds[0]),
        "decode_tokens_per_second": steps / (seconds[2] - seconds[1]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
