"""The functions inside models: several layers, opsets, refusals, and who runs where the library is registered."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.agreement import assert_agrees
from support.random_cases import Case, key_rows
from support.single_op import fallback_model, model, operator_node, run, session, unfused_model

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.functions import Signature, fallback_functions

HQ, HKV, D = 6, 2, 5
ATTRIBUTES = {
    "num_heads": HQ,
    "kv_num_heads": HKV,
    "scale": 0.0,
    "softcap": 0.0,
    "local_window_size": -1,
    "do_rotary": 0,
    "rotary_interleaved": 0,
    "delta_window": 3,
    "sinks": 1,
    "granularity": "element",
    "row_rule": "relative",
    "refresh": 0,
    "v_skip": 0.0,
    "prefill": "delta",
    "cache_format": "float32",
}


def make_case(*, batch: int = 2, new: int = 4, past: int = 9, mask: Any = None, **attributes: Any) -> Case:
    rng = np.random.default_rng(23)
    keys = key_rows(rng, (batch, HKV, past + new, D), grid=False)
    inputs = {
        "query": rng.normal(size=(batch, new, HQ * D)).astype(np.float32),
        "key": keys[:, :, past:].transpose(0, 2, 1, 3).reshape(batch, new, HKV * D),
        "value": rng.normal(size=(batch, new, HKV * D)).astype(np.float32),
        "past_key": keys[:, :, :past].copy(),
        "past_value": rng.normal(size=(batch, HKV, past, D)).astype(np.float32),
        "threshold": np.array([0.3, 0.6], np.float32),
    }
    if mask is not None:
        inputs["attention_mask"] = np.array(mask, np.int64)
    return Case(inputs, {**ATTRIBUTES, **attributes})


@pytest.mark.parametrize("opset_version", [18, 19, 20, 21, 22, 23, 24])
@pytest.mark.parametrize("build", [fallback_model, unfused_model])
def test_bodies_are_valid_from_opset_18_on(opset_version: int, build: Callable[..., bytes]) -> None:
    case = make_case(mask=np.ones((2, 13)), granularity="row", v_skip=0.1, softcap=2.0, refresh=4)
    serialized = build(case, opset_version=opset_version)
    onnx.checker.check_model(serialized, full_check=False)
    assert_agrees(case, run(serialized, case.inputs), must_skip=True)


def test_an_older_opset_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="opset 17 but the fallback functions need 18"):
        fallback_model(make_case(), opset_version=17)


def test_layers_keep_their_own_numbers() -> None:
    # One function serves both: only the first has a softcap, only the second skips values and has a local window.
    first = make_case(softcap=1.5, delta_window=2)
    second = make_case(local_window_size=6, sinks=3, v_skip=0.2, scale=0.9)
    nodes = [operator_node(first, name="layer.0"), operator_node(second, name="layer.1")]
    for output in nodes[1].outputs:
        output.name = f"second_{output.name}"
    inputs = [value for value in nodes[0].inputs if value is not None]
    for index, value in enumerate(nodes[0].inputs):
        nodes[1].replace_input_with(index, value)
    functions = fallback_functions(Signature.of(nodes), opset_version=23)
    outputs = [*nodes[0].outputs, *nodes[1].outputs]
    got = run(model(inputs, outputs, nodes, functions), first.inputs)
    assert_agrees(first, got[:4], must_skip=True)
    assert_agrees(second, got[4:], must_skip=True)


@pytest.mark.parametrize(
    "name", ["granularity", "prefill", "cache_format", "do_rotary", "passed", "row_rule", "statistics"]
)
def test_nodes_that_need_two_functions_are_refused(name: str) -> None:
    plain = make_case(granularity="row" if name == "row_rule" else "element")
    changed = {
        "granularity": {"granularity": "row"},
        "prefill": {"prefill": "exact"},
        "cache_format": {"cache_format": "float16"},
        "do_rotary": {"do_rotary": 1},
        "row_rule": {"row_rule": "absolute"},
        "passed": {},
        "statistics": {},
    }[name]
    other = Case(dict(plain.inputs), {**plain.attributes, **changed})
    if name == "passed":
        other.inputs["head_sink"] = np.zeros(HQ, np.float32)
    if name == "do_rotary":
        for case in (plain, other):
            case.inputs.update({"cos_cache": np.ones((20, 2), np.float32), "sin_cache": np.ones((20, 2), np.float32)})
    nodes = [
        operator_node(plain, name="layer.0"),
        operator_node(other, name="layer.1", statistics=name != "statistics"),
    ]
    told = "whether they pass head_sink" if name == "passed" else f"differ in {name}"
    with pytest.raises(DeltaLLMError, match=f"'layer.0' and 'layer.1' .*{told}"):
        Signature.of(nodes)


def test_calls_that_cannot_be_built_are_refused() -> None:
    def refused(sentence: str, remove: str = "", **add: np.ndarray) -> None:
        case = make_case()
        case.inputs.pop(remove, None)
        case.inputs.update(add)
        with pytest.raises(DeltaLLMError, match=sentence):
            Signature.of([operator_node(case)])

    refused("passes k_scale, which this version cannot use", k_scale=np.ones(1, np.float32))
    refused("passes no value", remove="value")
    refused("passes no past_key", remove="past_key")
    refused("passes no total_sequence_length", seqlens_k=np.zeros(2, np.int32))
    with pytest.raises(DeltaLLMError, match="There is no DeltaAttention node"):
        Signature.of([])
    node = operator_node(make_case())
    del node.attributes["num_heads"]
    with pytest.raises(DeltaLLMError, match="has no attribute num_heads"):
        Signature.of([node])


def test_attributes_a_node_leaves_out_take_their_defaults() -> None:
    case = make_case(delta_window=0, sinks=0)
    node = operator_node(case)
    for name in set(ATTRIBUTES) - {"num_heads", "kv_num_heads"}:
        del node.attributes[name]
    inputs = [value for value in node.inputs if value is not None]
    functions = fallback_functions(Signature.of([node]), opset_version=21)
    serialized = model(inputs, node.outputs, [node], functions, opset_version=21)
    assert_agrees(case, run(serialized, case.inputs), must_skip=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"attention_mask": np.array([[1] * 13, [0, 1, 0] + [1] * 10])}, "attention_mask has a zero between ones"),
        ({"attention_mask": np.ones((2, 14), np.int64)}, "past_key does not hold the past length"),
        ({"attention_mask": np.ones((2, 3), np.int64)}, "past_key does not hold the past length"),
        ({"seqlens_k": np.array([12, 13])}, "seqlens_k is outside 0 to total_sequence_length - 1"),
        ({"seqlens_k": np.array([12, 1])}, "past_key does not hold the past length"),
    ],
)
def test_lengths_that_contradict_each_other_stop_the_run(changes: dict[str, np.ndarray], told: str) -> None:
    case = make_case()
    case.inputs.update(changes)
    if "seqlens_k" in changes:
        case.inputs["seqlens_k"] = changes["seqlens_k"].astype(np.int32)
        case.inputs["total_sequence_length"] = np.array(13, np.int32)
    with pytest.raises(Exception, match=told.replace(" ", "_")):
        run(fallback_model(case), case.inputs)
    with pytest.raises(DeltaLLMError):
        case.expected()


@pytest.mark.parametrize(("new", "coded"), [(1, 1), (4, 4)])
def test_a_step_codes_only_what_leaves_the_window(new: int, coded: int) -> None:
    case = make_case(new=new, past=200)
    serialized = onnx.load_from_string(unfused_model(case))
    name = "layer.0/DeltaAttention/rows_leaving_the_window"
    serialized.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    rows = run(serialized.SerializeToString(), case.inputs)[-1]
    assert rows.shape == (2, HKV, coded, D)


def test_the_library_takes_the_place_of_the_function(library: str) -> None:
    case = make_case()
    node = operator_node(case, statistics=False)
    inputs = [value for value in node.inputs if value is not None]
    names = ["query", "key", "value", "past_key", "past_value", *[f"unused_{n}" for n in range(11)], "threshold"]
    declared = [ir.Value(name=name) for name in names]
    copies = [ir.node("Identity", [declared[n]]) for n in (0, 3, 4)]
    graph = ir.Graph(
        declared, [copy.outputs[0] for copy in copies], nodes=copies, opset_imports={"": 23}, name="not attention"
    )
    attributes = [ir.Attr(name, ir.AttributeType.INT, None) for name in case.attributes]
    wrong = ir.Function("ai.deltallm", "DeltaAttention", graph=graph, attributes=attributes)
    serialized = model(inputs, node.outputs, [node], [wrong])
    np.testing.assert_array_equal(run(serialized, case.inputs)[0], case.inputs["query"])
    np.testing.assert_allclose(run(serialized, case.inputs, library)[0], case.expected()[0], rtol=1e-5, atol=1e-5)


def test_graph_outputs_keep_names_types_and_ranks() -> None:
    case = make_case(cache_format="float16")
    for name in ("past_key", "past_value"):
        case.inputs[name] = case.inputs[name].astype(np.float16)
    outputs = session(fallback_model(case)).get_outputs()
    assert [(x.name, x.type, len(x.shape)) for x in outputs] == [
        ("output", "tensor(float)", 3),
        ("present_key", "tensor(float16)", 4),
        ("present_value", "tensor(float16)", 4),
        ("statistics", "tensor(int64)", 2),
    ]
