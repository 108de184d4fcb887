"""The oracle: docs/spec.md in plain numpy, written to be read and compared with, not to be fast.

Letters in shapes: B batch, S new tokens, C rows of the cache, N rows of a key sequence, Hq query heads, Hkv key/value
heads, G = Hq / Hkv, D head size. Everything is widened to float32 first; sums over channels and keys are float64.
"""

from deltallm_onnx.reference.attention import hybrid_window_attention
from deltallm_onnx.reference.hold import delta_threshold, hold
from deltallm_onnx.reference.lengths import RowLengths, resolve_lengths
from deltallm_onnx.reference.operator import delta_attention
from deltallm_onnx.reference.rotary import rotary
from deltallm_onnx.reference.statistics import STATISTICS_COLUMNS
from deltallm_onnx.reference.visibility import lineage_block_size

__all__ = [
    "STATISTICS_COLUMNS",
    "RowLengths",
    "delta_attention",
    "delta_threshold",
    "hold",
    "hybrid_window_attention",
    "lineage_block_size",
    "resolve_lengths",
    "rotary",
]
