"""The process that `bench` starts per model to see its memory.

    python -m deltallm_onnx.bench.memory_child \
        '{"model": "x.onnx", "past": 1024, "threads": 1, "chunk": 0, "vocabulary": 32000}'

prints one JSON object, `decoder_memory`'s result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from deltallm_onnx.bench.peak_memory import peak_resident_bytes, resident_bytes
from deltallm_onnx.bench.two_models import SEED, read_tokens
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel

_DECODED_TOKENS = 2


def decoder_memory(model: Path, *, past: int, threads: int, chunk: int, vocabulary: int) -> dict[str, int | None]:
    """Load a model, read `past` tokens, decode a few, and say what it took.

    Args:
        model: the .onnx file.
        past: tokens, ≥ 1.
        threads: intra-op threads.
        chunk: tokens per call while reading; 0 = all at once.
        vocabulary: tokens are drawn from so many. A text of one token again and again would merge into a few rows.

    Returns:
        peak_resident_bytes and resident_bytes of this process, kv_bytes_in_use and kv_bytes_allocated of the caches at
        the end.

    Raises:
        DeltaLLMError: for a model this runtime cannot run.
    """
    decoder = DecoderModel(model, threads=threads)
    cache = decoder.new_cache(limit=past + _DECODED_TOKENS)
    tokens = np.random.default_rng(SEED).integers(0, vocabulary, (1, past + _DECODED_TOKENS))
    read_tokens(decoder, cache, tokens[:, :past], chunk)
    for token in tokens[0, past:]:
        decoder.step(np.array([[token]]), cache)
    resident = resident_bytes()
    return {
        # The system counts both by processor and adds them up now and then: the peak may lag behind what is there.
        "peak_resident_bytes": max(peak_resident_bytes(), resident or 0),
        "resident_bytes": resident,
        "kv_bytes_in_use": cache.bytes_in_use,
        "kv_bytes_allocated": cache.bytes_allocated,
    }


def _main(request: str) -> int:
    try:
        arguments = json.loads(request)
        result = decoder_memory(Path(arguments.pop("model")), **arguments)
    except DeltaLLMError as error:
        print("error:", error, file=sys.stderr)
        return 2
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
