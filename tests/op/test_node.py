"""The node as ONNX Runtime sees it: inferred shapes and types, and refusals with their sentences."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from support.delta_feeds import HEADS, delta_feeds
from support.op_session import (
    DELTA_ATTENTION_INPUTS,
    delta_attention_model,
    forced_isa,
    one_node_model,
    run_delta_attention,
    session,
)

FLOAT = onnx.TensorProto.FLOAT


def inferred(model: bytes) -> dict[str, tuple[str, list[Any]]]:
    return {o.name: (o.type, o.shape) for o in session(model).get_outputs()}


def test_shapes_follow_symbols() -> None:
    feeds = delta_feeds(np.random.default_rng(0))
    shapes = {"query": ["batch", "new", 72], "past_key": ["batch", 2, "past", 12]}
    outputs = inferred(delta_attention_model(feeds, shapes=shapes, **HEADS))
    assert outputs["output"] == ("tensor(float)", ["batch", "new", 72])
    kind, present = outputs["present_key"]
    assert kind == "tensor(float)"
    assert (present[0], present[1], present[3]) == ("batch", 2, 12)
    # The capacity is not known before the run. A symbol, not −1, stands for it, and equals no other dimension.
    assert isinstance(present[2], str)
    assert present[2] not in {"batch", "new", "past", outputs["present_value"][1][2]}
    # an output that nodes may leave out has no inferred shape: see InferenceContext::SetOutput
    assert outputs["statistics"] == ("tensor(int64)", [])


def test_shapes_known_in_full() -> None:
    feeds = delta_feeds(np.random.default_rng(0), cache="float16")
    model = delta_attention_model(feeds, shapes={name: list(array.shape) for name, array in feeds.items()}, **HEADS)
    outputs = inferred(model)
    assert outputs["output"] == ("tensor(float)", [2, 3, 72])
    assert outputs["present_key"] == outputs["present_value"] == ("tensor(float16)", [2, 2, 12, 12])
    results = dict(zip(outputs, session(model).run(None, feeds), strict=True))
    assert results.pop("statistics").shape == (2, 8)
    for name, result in results.items():
        assert list(result.shape) == outputs[name][1]


def test_shape_of_a_packed_query() -> None:
    feeds = {"query": np.zeros((2, 3, (6 + 4) * 12), np.float32)}
    outputs = inferred(delta_attention_model(feeds, shapes={"query": [2, "s", 120]}, cache_format="float16", **HEADS))
    assert outputs["output"] == ("tensor(float)", [2, "s", 72])
    assert outputs["present_key"][0] == "tensor(float16)"
    assert outputs["present_key"][1] == [2, 2, "s", 12]


def test_a_later_node_gets_the_inferred_shape() -> None:
    """Fusions behind the node need its output's rank: ONNX Runtime drops a malformed inference without a word."""
    feeds = delta_feeds(np.random.default_rng(0))
    model = onnx.load_from_string(delta_attention_model(feeds, statistics=False, **HEADS))
    model.graph.node.append(helper.make_node("Identity", ["output"], ["copy"]))
    model.graph.output.append(helper.make_tensor_value_info("copy", FLOAT, None))
    assert len(inferred(model.SerializeToString())["copy"][1]) == 3


ATTRIBUTE_REFUSALS = {
    "granularity": ({"granularity": "block"}, 'granularity is "block": choose one of "element", "row".'),
    "row_rule": ({"row_rule": "rms"}, 'row_rule is "rms": choose one of "relative", "absolute".'),
    "prefill": ({"prefill": "none"}, 'prefill is "none": choose one of "exact", "delta".'),
    "cache_format": (
        {"cache_format": "int3"},
        'cache_format is "int3": choose one of "float32", "float16", "int8", "int4".',
    ),
    "prefill_compute": (
        {"prefill_compute": "float16"},
        'prefill_compute is "float16": choose one of "float32", "bfloat16", "int8".',
    ),
    "exact rows of a packed cache": (
        {"cache_format": "int8", "delta_window": 5, "sinks": 2},
        'sinks + delta_window is 7: cache_format "int8" needs at least 8.',
    ),
    "heads": ({"num_heads": 5}, "num_heads is 5 and kv_num_heads 2: give positive numbers"),
    "window": ({"delta_window": -1}, "delta_window is -1: give a whole number of tokens, 0 or more."),
    "sinks": ({"sinks": -3}, "sinks is -3: give a whole number of tokens, 0 or more."),
    "refresh": ({"refresh": -1}, "refresh is -1: give a whole number of tokens, 0 or more."),
    "v_skip": ({"v_skip": 1.5}, "v_skip is 1.5: give a number from 0 up to, but below, 1."),
    "softcap": ({"softcap": -2.0}, "softcap is -2: give 0 (none) or a positive number."),
    "local window": ({"local_window_size": 0}, "local_window_size is 0: give -1 (none) or at least 1."),
    "rotary flag": ({"do_rotary": 2}, "Attribute do_rotary is 2: give 0 or 1."),
    "type of sinks": ({"sinks": 1.5}, "Attribute sinks is not an integer: give an integer."),
    "list of windows": ({"delta_window": [1, 2]}, "Attribute delta_window is not an integer: give an integer."),
    "type of prefill": ({"prefill": 1}, "Attribute prefill is not a string: give a string."),
    "smooth softmax": ({"smooth_softmax": 1}, "Attribute smooth_softmax is 1, which is not supported: give 0."),
    "quantised cache": (
        {"k_quant_type": "PER_TENSOR"},
        'Attribute k_quant_type is "PER_TENSOR", which is not supported: give "NONE".',
    ),
    "cache of another type": (
        {"cache_format": "float16"},
        'past_key is of type float32, but cache_format is "float16": give float16.',
    ),
}


@pytest.mark.parametrize("name", ATTRIBUTE_REFUSALS)
def test_a_bad_attribute_is_refused_at_session_creation(name: str) -> None:
    attributes, sentence = ATTRIBUTE_REFUSALS[name]
    feeds = delta_feeds(np.random.default_rng(0))
    kinds = {"output": FLOAT, "present_key": FLOAT, "present_value": FLOAT}
    model = one_node_model("DeltaAttention", DELTA_ATTENTION_INPUTS, feeds, kinds, {**HEADS, **attributes})
    with pytest.raises(Exception, match=re.escape(f"DeltaAttention node 'node': {sentence}")):
        session(model)


@pytest.mark.parametrize(
    ("name", "index"), [("k_scale", 12), ("v_scale", 13), ("q_norm_weight", 14), ("k_norm_weight", 15)]
)
def test_an_unsupported_input_is_refused_at_session_creation(name: str, index: int) -> None:
    feeds = delta_feeds(np.random.default_rng(0)) | {name: np.ones(12, np.float32)}
    with pytest.raises(Exception, match=re.escape(f"Input {index} ({name}) is given, but not supported: remove it.")):
        session(delta_attention_model(feeds, **HEADS))


def test_caches_that_go_nowhere_are_refused() -> None:
    feeds = delta_feeds(np.random.default_rng(0))
    model = one_node_model("DeltaAttention", DELTA_ATTENTION_INPUTS, feeds, {"output": FLOAT}, HEADS)
    # shape inference must not see such a node: it would write past the end of ONNX Runtime's array
    with pytest.raises(Exception, match=r"has output size 1 not in range \[min=3, max=4\]"):
        session(model)
    unnamed = onnx.load_from_string(model)
    unnamed.graph.node[0].output.extend(["", ""])
    with pytest.raises(Exception, match="output 1 is marked single but has an empty string"):
        session(unnamed.SerializeToString())


def test_an_unknown_or_foreign_isa_is_refused_at_session_creation() -> None:
    model = delta_attention_model(delta_feeds(np.random.default_rng(0)), **HEADS)
    with pytest.raises(
        Exception, match="DELTALLM_ISA is 'sse9': give one of scalar, avx2, avx512, avx512_vnni, neon, neon_dotprod"
    ):
        session(model, isa="sse9")


def test_an_unsupported_type_is_refused() -> None:
    feeds = {name: np.zeros((2, 3, 72 if name == "query" else 24)) for name in ("query", "key", "value")}
    with pytest.raises(Exception, match=r"tensor\(double\)"):
        session(delta_attention_model(feeds, **HEADS))


def spoiled(**changes: Any) -> dict[str, Any]:
    feeds = delta_feeds(np.random.default_rng(0))
    feeds |= changes
    return {name: array for name, array in feeds.items() if array is not None}


def with_hole() -> np.ndarray:
    mask = np.ones((2, 12), np.int64)
    mask[1, 5] = 0
    return mask


RUN_REFUSALS = {
    "hole in the mask": (
        {"attention_mask": with_hole()},
        "attention_mask has a zero between ones at row 1, column 5: it may pad both ends only.",
    ),
    "NaN threshold": (
        {"threshold": np.array([0.1, np.nan], np.float32)},
        "threshold holds nan at index 1: give finite numbers of at least 0.",
    ),
    "short past": (
        {"past_key": np.zeros((2, 2, 7, 12), np.float32), "past_value": np.zeros((2, 2, 7, 12), np.float32)},
        "Batch row 0 has 9 past tokens, but past_key holds 7",
    ),
    "rank of the key": ({"key": np.zeros((2, 3, 2, 12), np.float32)}, "key has shape [2, 3, 2, 12]: give [2, 3, 24]"),
    "lengths twice": (
        {"seqlens_k": np.array([11, 12], np.int32), "total_sequence_length": np.array([12], np.int32)},
        "seqlens_k[1] is 12: give 0 to total_sequence_length - 1 = 11.",
    ),
}


@pytest.mark.parametrize("name", RUN_REFUSALS)
def test_a_bad_input_is_refused_in_the_run(name: str) -> None:
    changes, sentence = RUN_REFUSALS[name]
    with pytest.raises(Exception, match=re.escape(sentence)):
        run_delta_attention(spoiled(**changes), **HEADS)


def test_a_refused_call_leaves_shared_buffers_alone() -> None:
    feeds = delta_feeds(np.random.default_rng(0), past=12)
    feeds["attention_mask"] = with_hole()
    running = session(delta_attention_model(feeds, statistics=False, **HEADS))
    caches = {name: ort.OrtValue.ortvalue_from_numpy(feeds[f"past_{name}"].copy()) for name in ("key", "value")}
    binding = running.io_binding()
    for name in ("query", "key", "value", "threshold", "attention_mask"):
        binding.bind_cpu_input(name, feeds[name])
    for name, cache in caches.items():
        binding.bind_ortvalue_input(f"past_{name}", cache)
        binding.bind_ortvalue_output(f"present_{name}", cache)
    binding.bind_output("output")
    with pytest.raises(Exception, match="a zero between ones"):
        running.run_with_iobinding(binding)
    for name, cache in caches.items():
        np.testing.assert_array_equal(cache.numpy(), feeds[f"past_{name}"])


def test_forced_isa_is_read_at_session_creation_only() -> None:
    feeds = delta_feeds(np.random.default_rng(0))
    running = session(delta_attention_model(feeds, **HEADS), isa="scalar")
    with forced_isa("nonsense"):
        running.run(None, feeds)
