"""Settings of the tiny decoder that hold about half of what they code, for tests of deltallm_onnx.evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from deltallm_onnx.config import DeltaConfig

#: Largest difference of a logit, of order ten, between one call and many: other sums in float32.
TOLERANCE = 2e-5

ROW = DeltaConfig(threshold=1.3, window=9, sinks=1, cache_format="float32")
ELEMENT = ROW.replace(granularity="element")

#: A configuration and options of `rewrite` to the path of the rewritten tiny decoder.
Rewritten = Callable[..., Path]
