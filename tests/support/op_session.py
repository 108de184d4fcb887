"""One-node models of the ai.deltallm operators, and sessions with the library registered."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper

from deltallm_onnx.runtime import cache_spec, ops_library_path

Array = npt.NDArray[Any]

DOMAIN = "ai.deltallm"

DELTA_ATTENTION_INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "total_sequence_length",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "attention_bias",
    "head_sink",
    "k_scale",
    "v_scale",
    "q_norm_weight",
    "k_norm_weight",
    "threshold",
    "row_weight",
    "attention_mask",
)
DELTA_ATTENTION_OUTPUTS = ("output", "present_key", "present_value", "statistics")
#: GroupQueryAttention takes the first inputs in the same order.
GROUP_QUERY_INPUTS = DELTA_ATTENTION_INPUTS[:12]

DELTA_THRESHOLD_INPUTS = ("key", "reference", "threshold", "row_weight", "transmit")
HYBRID_WINDOW_INPUTS = (
    "query",
    "key",
    "held_key",
    "value",
    "past_length",
    "start",
    "length",
    "attention_bias",
    "head_sink",
)


def one_node_model(
    op_type: str,
    input_names: Sequence[str],
    feeds: Mapping[str, Array],
    output_types: Mapping[str, int],
    attributes: Mapping[str, Any],
    *,
    domain: str = DOMAIN,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
) -> bytes:
    """A model with one node whose inputs are graph inputs of the feeds' types; inputs without a feed are absent.

    Args:
        op_type: operator.
        input_names: the operator's inputs in order.
        feeds: arrays by input name.
        output_types: TensorProto type by output name, in order; "" leaves an output out.
        attributes: of the node.
        domain: of the operator.
        shapes: declared shape by input name; by default every dimension is unknown, so that one model serves all.
    """
    used = [name if name in feeds else "" for name in input_names]
    while used and not used[-1]:
        used.pop()
    node = helper.make_node(op_type, used, list(output_types), name="node", domain=domain, **attributes)
    inputs = []
    for name in used:
        if name:
            shape = (shapes or {}).get(name) or [f"{name}_{axis}" for axis in range(feeds[name].ndim)]
            inputs.append(
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), shape)
            )
    outputs = [helper.make_tensor_value_info(name, kind, None) for name, kind in output_types.items() if name]
    graph = helper.make_graph([node], "one_node", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return model.SerializeToString()


def session(model: bytes, *, threads: int = 2, isa: str | None = None) -> ort.InferenceSession:
    """A session with the library, on `threads` threads, with the kernels of one instruction set if `isa` names it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.register_custom_ops_library(str(ops_library_path()))
    with forced_isa(isa):
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def forced_isa(isa: str | None) -> Iterator[None]:
    """DELTALLM_ISA for the sessions created inside; None leaves it as it is."""
    before = os.environ.get("DELTALLM_ISA")
    try:
        if isa is not None:
            os.environ["DELTALLM_ISA"] = isa
        yield
    finally:
        if isa is not None:
            if before is None:
                del os.environ["DELTALLM_ISA"]
            else:
                os.environ["DELTALLM_ISA"] = before


def onnx_type(dtype: npt.DTypeLike) -> int:
    """TensorProto type of a numpy type."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def delta_attention_model(
    feeds: Mapping[str, Array],
    *,
    statistics: bool = True,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    **attributes: Any,
) -> bytes:
    """A DeltaAttention model for these feeds; the cache's type is past_key's, else cache_format's, else float32."""
    cache, _ = cache_spec(attributes.get("cache_format", "float32"), 1)
    if "past_key" in feeds:
        cache = feeds["past_key"].dtype
    types = {
        "output": onnx_type(feeds["query"].dtype),
        "present_key": onnx_type(cache),
        "present_value": onnx_type(cache),
    }
    if statistics:
        types["statistics"] = onnx.TensorProto.INT64
    return one_node_model("DeltaAttention", DELTA_ATTENTION_INPUTS, feeds, types, attributes, shapes=shapes)


def run_delta_attention(
    feeds: Mapping[str, Array], *, threads: int = 2, isa: str | None = None, **attributes: Any
) -> tuple[Array, Array, Array, Array]:
    """output, present_key, present_value, statistics of one call in a session of its own."""
    model = delta_attention_model(feeds, **attributes)
    return tuple(session(model, threads=threads, isa=isa).run(None, dict(feeds)))


def run_group_query_attention(feeds: Mapping[str, Array], **attributes: Any) -> tuple[Array, Array, Array]:
    """output, present_key, present_value of com.microsoft.GroupQueryAttention."""
    kind = onnx_type(feeds["query"].dtype)
    model = one_node_model(
        "GroupQueryAttention",
        GROUP_QUERY_INPUTS,
        feeds,
        {"output": kind, "present_key": kind, "present_value": kind},
        attributes,
        domain="com.microsoft",
    )
    return tuple(session(model).run(None, dict(feeds)))
