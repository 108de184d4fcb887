"""The process that `bench.bitnet_weights` starts to see its memory; one JSON argument, one JSON object out."""

from __future__ import annotations

import json
import sys

from bench.bitnet_weights import child
from deltallm_onnx.errors import DeltaLLMError


def main() -> int:
    try:
        print(json.dumps(child(json.loads(sys.argv[1]))))
    except DeltaLLMError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
