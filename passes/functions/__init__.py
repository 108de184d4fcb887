"""The ai.deltallm operators as model-local functions in standard ops: fallback and executable specification."""

from deltallm_onnx.passes.functions.delta_attention import fallback_functions, unfused_functions, unfused_subgraph
from deltallm_onnx.passes.functions.delta_threshold import delta_threshold_function
from deltallm_onnx.passes.functions.hybrid_window_attention import hybrid_window_attention_function
from deltallm_onnx.passes.functions.signature import Signature

__all__ = [
    "Signature",
    "delta_threshold_function",
    "fallback_functions",
    "hybrid_window_attention_function",
    "unfused_functions",
    "unfused_subgraph",
]
