"""With threshold 0 the oracle is ONNX Runtime's own GroupQueryAttention, input for input."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from support.op_session import DELTA_ATTENTION_INPUTS

from deltallm_onnx.reference import delta_attention

HQ, HKV, D, MAX_POSITIONS = 6, 2, 16, 40
TYPES = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32, "int64": TensorProto.INT64}


def group_query_attention(inputs: dict[str, np.ndarray], attributes: dict[str, Any]) -> list[np.ndarray]:
    names = [name if name in inputs else "" for name in DELTA_ATTENTION_INPUTS[:12]]
    node = helper.make_node(
        "GroupQueryAttention", names, ["output", "present_key", "present_value"], domain="com.microsoft", **attributes
    )
    graph = helper.make_graph(
        [node],
        "peer",
        [helper.make_tensor_value_info(k, TYPES[str(v.dtype)], v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in node.output],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def call(rng: np.random.Generator, past: list[int], new: int, *, prompt: bool, packed: bool) -> dict[str, np.ndarray]:
    """Inputs of a call; row b has past[b] tokens before it, or past[b] real tokens in a prompt."""
    B = len(past)
    length = np.array(past) if prompt else np.array(past) + new
    total = new if prompt else length.max()
    inputs = {
        "query": rng.normal(size=(B, new, HQ * D)),
        "key": rng.normal(size=(B, new, HKV * D)),
        "value": rng.normal(size=(B, new, HKV * D)),
        "past_key": rng.normal(size=(B, HKV, 0 if prompt else max(past), D)),
        "past_value": rng.normal(size=(B, HKV, 0 if prompt else max(past), D)),
    }
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    if packed:
        inputs["query"] = np.concatenate([inputs.pop(name) for name in ("query", "key", "value")], axis=2)
    inputs["seqlens_k"] = (length - 1).astype(np.int32)
    inputs["total_sequence_length"] = np.array(total, np.int32)
    return inputs


CALLS = {
    "ragged prompt": {"past": [9, 5], "new": 9, "prompt": True, "packed": False},
    "ragged decode": {"past": [11, 7], "new": 1, "prompt": False, "packed": False},
    "packed prompt": {"past": [7, 7], "new": 7, "prompt": True, "packed": True},
    # The peer takes a chunk after a past for one row only.
    "chunk": {"past": [6], "new": 4, "prompt": False, "packed": False},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"scale": 0.4, "softcap": 1.5},
        {"local_window_size": 4},
        {"do_rotary": 1},
        {"do_rotary": 1, "rotary_interleaved": 1},
    ],
)
@pytest.mark.parametrize("extra", ["", "attention_bias", "head_sink"])
def test_oracle_equals_group_query_attention(name: str, attributes: dict[str, Any], extra: str) -> None:
    rng = np.random.default_rng(17)
    inputs = call(rng, **CALLS[name])
    if attributes.get("do_rotary"):
        angles = rng.uniform(0, 6, (MAX_POSITIONS, D // 2))
        inputs |= {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}
    if extra == "attention_bias":
        shape = (len(CALLS[name]["past"]), HQ, inputs["query"].shape[1], int(inputs["total_sequence_length"]))
        inputs["attention_bias"] = rng.normal(size=shape).astype(np.float32)
    elif extra == "head_sink":
        inputs["head_sink"] = rng.normal(size=HQ).astype(np.float32)
    attributes = {"num_heads": HQ, "kv_num_heads": HKV, **attributes}
    peer = group_query_attention(inputs, attributes)
    ours = delta_attention(**{"key": None, "value": None, **inputs}, **attributes, threshold=0.0, delta_window=2)
    new = inputs["query"].shape[1]
    length = inputs["seqlens_k"] + 1
    for b in range(len(length)):
        # Behind a row's length the peer's output and cache hold whatever they hold.
        real = min(new, int(length[b])) if CALLS[name]["prompt"] else new
        np.testing.assert_allclose(ours[0][b, :real], peer[0][b, :real], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(ours[1][b, :, : length[b]], peer[1][b, :, : length[b]], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(ours[2][b, :, : length[b]], peer[2][b, :, : length[b]])
