"""The process that `bench.bitnet_weights` starts to see its memory; one JSON argument, one JSON object out."""

from __future__ import annotations

import json
import sys

from bench.bitnet_weights import child
from bench.script import refusals

if __name__ == "__main__":
    with refusals():
        print(json.dumps(child(json.loads(sys.argv[1]))))
