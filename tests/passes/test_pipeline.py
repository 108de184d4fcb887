"""`rewrite_model` as a whole: all or nothing, what the rewritten graph looks like, and what it says about itself."""

from __future__ import annotations

import json

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from support.attention_models import (
    HEAD_SIZE,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    attention_model,
    exporter_mask,
    seen_by_position,
)
from support.softmax_models import Spelling, softmax_model

import deltallm_onnx
from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.passes import naming, pipeline, rewrite_model
from deltallm_onnx.passes.site import AttentionSite, Declined

CONFIG = DeltaConfig(
    threshold=0.75,
    window=33,
    sinks=2,
    granularity="element",
    row_rule="absolute",
    refresh=11,
    v_skip=0.125,
    prefill="delta",
    cache_format="float16",
    prefill_compute="bfloat16",
)


def dense(**options: object) -> ir.Model:
    options = {"layers": 3, "layout": "projected", **options}
    return ir.serde.deserialize_model(attention_model(exporter_mask(6), **options))  # type: ignore[arg-type]


def nodes_of(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


def one_layer_not_causal(g: GraphBuilder) -> None:
    """Layer 1 of several gets a mask of its own, which hides only what lies before the window."""
    node, count = [node for node in g.nodes if node.op_type == "Attention"][1], len(g.nodes)
    node.input[3] = g.node("Not", seen_by_position(g))
    g.nodes[:] = g.nodes[count:] + g.nodes[:count]


def test_every_field_of_the_configuration_arrives() -> None:
    model = dense()
    rewrite_model(model, CONFIG)
    nodes = nodes_of(model, "DeltaAttention")
    assert len(nodes) == 3
    for layer, node in enumerate(nodes):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        assert attributes == {
            "num_heads": QUERY_HEADS,
            "kv_num_heads": KV_HEADS,
            "scale": pytest.approx(HEAD_SIZE**-0.5),
            "softcap": 0.0,
            "local_window_size": 6,
            "do_rotary": 0,
            "rotary_interleaved": 0,
            "delta_window": 33,
            "sinks": 2,
            "granularity": "element",
            "row_rule": "absolute",
            "refresh": 11,
            "v_skip": 0.125,
            "prefill": "delta",
            "cache_format": "float16",
            "prefill_compute": "bfloat16",
        }
        names = [None if value is None else value.name for value in node.inputs]
        assert names[3:5] == [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        assert names[5:16] == [None] * 11
        assert names[16:] == [f"deltallm.threshold.{layer}", None, "attention_mask"]
        threshold = model.graph.initializers[f"deltallm.threshold.{layer}"].const_value
        assert threshold is not None
        assert threshold.dtype is ir.DataType.FLOAT
        assert threshold.numpy().tolist() == [0.75] * KV_HEADS


def test_inputs_and_outputs_keep_their_names_and_shapes() -> None:
    before, after = dense(), dense()
    rewrite_model(after, CONFIG)
    for old, new in zip(
        [*before.graph.inputs, *before.graph.outputs], [*after.graph.inputs, *after.graph.outputs], strict=True
    ):
        assert old.name is not None
        assert (old.name, old.shape) == (new.name, new.shape)
        is_cache = old.name.startswith(("past_key_values", "present"))
        assert new.dtype is (ir.DataType.FLOAT16 if is_cache else old.dtype)


def test_masks_and_layout_changes_disappear() -> None:
    """An exported layer is flat on both sides of its attention, so nothing is left but the operators."""
    model = dense()
    report = rewrite_model(model, CONFIG)
    # The last Reshape makes a graph output, which keeps its own name, and the split before it.
    assert {node.op_type for node in model.graph} == {"DeltaAttention", "Reshape"}
    assert report.removed_nodes > 20


def test_layout_changes_between_other_operators_stay() -> None:
    """A rotary embedding or norm between projection and attention keeps the transposition it was given."""

    def between(g: GraphBuilder) -> None:
        place = next(i for i, node in enumerate(g.nodes) if node.op_type == "Attention")
        g.node("Tanh", g.nodes[place].input[0], output="activated")
        g.nodes[place].input[0] = "activated"
        g.nodes.insert(place, g.nodes.pop())
        shape = ["batch", QUERY_HEADS, "sequence", HEAD_SIZE]
        g.typed.append(helper.make_tensor_value_info("activated", TensorProto.FLOAT, shape))

    model = dense(layers=1, changed=between)
    rewrite_model(model, CONFIG)
    (delta,) = nodes_of(model, "DeltaAttention")
    (query, key, value) = delta.inputs[:3]
    assert query is not None
    assert query.producer().op_type == "Reshape"  # type: ignore[union-attr]
    assert [tensor.name for tensor in (key, value) if tensor] == ["key.0", "value.0"]


def test_only_what_is_proven_by_shapes_is_folded() -> None:
    """Tokens of all rows in one axis, as packed sequences come: the transpositions cancel, the Reshape must stay."""

    def pack(g: GraphBuilder) -> None:
        shape = g.inputs[-5].type.tensor_type.shape
        assert g.inputs[-5].name == "query.0"
        del shape.dim[0]
        shape.dim[0].dim_param = "tokens"
        target = g.node("Concat", g.node("Shape", "input_ids"), g.constant([QUERY_HEADS, HEAD_SIZE]), axis=0)
        split = next(node for node in g.nodes if node.op_type == "Reshape" and node.input[0] == "query.0")
        split.input[1] = target
        g.nodes.insert(0, g.nodes.pop())
        g.nodes.insert(0, g.nodes.pop())

    model = dense(layers=1, changed=pack)
    rewrite_model(model, CONFIG)
    (delta,) = nodes_of(model, "DeltaAttention")
    query = delta.inputs[0]
    assert query is not None
    assert query.producer().op_type == "Reshape"  # type: ignore[union-attr]
    assert not nodes_of(model, "Transpose")


def test_rotary_embeddings_take_flat_tensors() -> None:
    model = dense(layout="rotary")
    rewrite_model(model, CONFIG)
    for delta in nodes_of(model, "DeltaAttention"):
        for index, heads in ((0, QUERY_HEADS), (1, KV_HEADS)):
            rotary = delta.inputs[index].producer()  # type: ignore[union-attr]
            assert rotary is not None
            assert (rotary.op_type, rotary.attributes["num_heads"].as_int()) == ("RotaryEmbedding", heads)
            assert rotary.inputs[0].is_graph_input()  # type: ignore[union-attr]
    assert not nodes_of(model, "Transpose")


def test_a_rotary_embedding_read_elsewhere_stays() -> None:
    def read(g: GraphBuilder) -> None:
        g.output("query_rotated.0", TensorProto.FLOAT, ["batch", QUERY_HEADS, "sequence", HEAD_SIZE])

    model = dense(layout="rotary", layers=1, changed=read)
    rewrite_model(model, CONFIG)
    (delta,) = nodes_of(model, "DeltaAttention")
    assert delta.inputs[0].producer().op_type == "Reshape"  # type: ignore[union-attr]
    assert delta.inputs[1].producer().op_type == "RotaryEmbedding"  # type: ignore[union-attr]
    assert {value.name for value in model.graph.outputs} >= {"query_rotated.0"}


def test_flat_layers_get_no_layout_changes() -> None:
    model = dense(layout="flat")
    rewrite_model(model, CONFIG)
    assert [node.op_type for node in model.graph] == ["DeltaAttention"] * 3


@pytest.mark.parametrize("dtype", [TensorProto.BOOL, TensorProto.INT32])
def test_padding_of_another_type_is_cast_once(dtype: int) -> None:
    def retype(g: GraphBuilder) -> None:
        g.inputs[1].type.tensor_type.elem_type = dtype

    model = dense(changed=retype)
    rewrite_model(model, CONFIG)
    (cast,) = nodes_of(model, "Cast")
    assert {node.inputs[18] for node in nodes_of(model, "DeltaAttention")} == {cast.outputs[0]}
    assert cast.outputs[0].dtype is ir.DataType.INT64


def test_metadata() -> None:
    model = dense()
    model.metadata_props["author"] = "kept"
    rewrite_model(model, CONFIG, source_sha256="ab" * 32)
    assert model.metadata_props["author"] == "kept"
    assert model.metadata_props["deltallm.version"] == deltallm_onnx.__version__
    assert DeltaConfig.from_json(model.metadata_props["deltallm.config"]) == CONFIG
    assert model.metadata_props["deltallm.layers"] == "3"
    assert model.metadata_props["deltallm.source_sha256"] == "ab" * 32


def test_unfused_writes_the_two_operators() -> None:
    model = dense()
    report = rewrite_model(model, CONFIG, unfused=True, statistics=True)
    assert len(nodes_of(model, "DeltaThreshold")) == len(nodes_of(model, "HybridWindowAttention")) == 3
    assert not nodes_of(model, "DeltaAttention")
    assert {name for _, name, _ in model.functions} == {"DeltaThreshold", "HybridWindowAttention"}
    assert [value.name for value in model.graph.outputs][-3:] == [f"statistics.{i}" for i in range(3)]
    assert report.lines[0] == "3/3 attention layers rewritten"


def test_statistics_outputs() -> None:
    model = dense()
    rewrite_model(model, CONFIG, statistics=True)
    for layer, value in enumerate(model.graph.outputs[-3:]):
        assert (value.name, value.dtype) == (naming.statistics_name(layer), ir.DataType.INT64)
        assert value.shape == [KV_HEADS, 8]


def test_one_layer_not_understood_refuses_the_model() -> None:
    model = dense(changed=one_layer_not_causal)
    before = ir.serde.serialize_model(model).SerializeToString()
    with pytest.raises(
        DeltaLLMError, match=r"1 of 3 attention layers .*layer 1, node 'attention.1': its sliding window holds 0 keys"
    ):
        rewrite_model(model, CONFIG)
    assert ir.serde.serialize_model(model).SerializeToString() == before


def test_allow_partial_leaves_it_dense_and_says_why() -> None:
    model = dense(changed=one_layer_not_causal)
    report = rewrite_model(model, CONFIG, allow_partial=True)
    assert (report.layers, report.rewritten) == (3, 2)
    assert [declined.layer for declined in report.declined] == [1]
    assert report.lines[0] == "2/3 attention layers rewritten"
    assert "layer 1 (attention.1) left dense: its sliding window" in report.lines[1]
    assert len(nodes_of(model, "Attention")) == 1
    caches = {value.name: value.dtype for value in model.graph.inputs}
    assert caches["past_key_values.1.key"] is ir.DataType.FLOAT
    assert caches["past_key_values.2.key"] is ir.DataType.FLOAT16
    json.dumps(report.to_dict())


def test_allow_partial_names_caches_of_layers_that_were_not_even_seen() -> None:
    model = dense()
    cache = ir.Value(
        name="past_key_values.9.key", shape=ir.Shape([1, 2, "past", 10]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    model.graph.inputs.append(cache)
    with pytest.raises(DeltaLLMError, match=r"'past_key_values\.9\.key' are read by no attention"):
        rewrite_model(model, CONFIG)
    report = rewrite_model(model, CONFIG, allow_partial=True)
    assert (
        "the cache 'past_key_values.9.key' is read by no attention that was found, and stays as it is" in report.lines
    )


def test_a_newer_opset_is_refused() -> None:
    model = dense()
    model.opset_imports[""] = 99
    with pytest.raises(DeltaLLMError, match=r"The model has opset 99, and \d+ is the newest known"):
        rewrite_model(model, CONFIG)


def test_allow_partial_of_nothing_is_refused() -> None:
    model = ir.serde.deserialize_model(attention_model(None))
    with pytest.raises(DeltaLLMError, match="1 of 1 attention layers"):
        rewrite_model(model, CONFIG, allow_partial=True)


def test_many_refusals_are_counted() -> None:
    model = ir.serde.deserialize_model(attention_model(None, layers=5))
    with pytest.raises(DeltaLLMError, match=r"5 of 5 attention layers .*layer 0, node [^;]*\(and so in 4 more\)\.$"):
        rewrite_model(model, CONFIG)


def test_a_second_rewrite_is_refused() -> None:
    model = dense()
    rewrite_model(model, CONFIG)
    with pytest.raises(DeltaLLMError, match="already rewritten by deltallm-onnx"):
        rewrite_model(model, CONFIG)
    del model.metadata_props["deltallm.version"]
    with pytest.raises(DeltaLLMError, match=r"already holds the initializer 'deltallm\.threshold\.0'"):
        rewrite_model(model, CONFIG)


def test_padding_in_some_layers_only_is_refused() -> None:
    def unpadded(g: GraphBuilder) -> None:
        node = [node for node in g.nodes if node.op_type == "Attention"][1]
        node.input[3] = ""
        node.attribute.add(name="is_causal", i=1, type=2)

    model = dense(changed=unpadded)
    with pytest.raises(DeltaLLMError, match="Layers 0 and 1 differ in whether they have a padding mask"):
        rewrite_model(model, CONFIG)


def test_no_attention_is_refused_with_what_is_there() -> None:
    def other(g: GraphBuilder, op: str, domain: str) -> None:
        g.nodes[:] = [node for node in g.nodes if node.op_type != "Attention"]
        g.node(op, "query.0", output="present.0.key", domain=domain)
        del g.outputs[0], g.outputs[1]

    for op, domain, words in (
        ("MultiHeadAttention", "com.microsoft", "MultiHeadAttention is not rewritten; .* build the model with -p fp32"),
        ("PagedAttention", "com.microsoft", "PagedAttention is not rewritten; its cache lies in pages"),
        ("QAttention", "com.microsoft", "it has 1 com.microsoft.QAttention"),
        ("Softmax", "", "its 1 Softmax nodes are something else"),
        ("Relu", "", "and no Softmax either"),
    ):
        model = dense(layers=1, layout="heads_first", changed=lambda g, op=op, domain=domain: other(g, op, domain))
        if domain:
            model.opset_imports[domain] = 1
        with pytest.raises(DeltaLLMError, match=words):
            rewrite_model(model, CONFIG)


@pytest.mark.parametrize("error", [ir.passes.PostconditionError, ir.passes.PreconditionError, ValueError])
def test_a_pass_that_fails_is_a_refusal(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error("Graph contains\na cycle.")

    monkeypatch.setattr(pipeline.RetypeCachesPass, "call", fail)
    with pytest.raises(
        DeltaLLMError, match=r"did not understand this model .*Graph contains a cycle.*: this is a defect"
    ):
        rewrite_model(dense(), CONFIG)


def test_layers_lost_by_a_conversion_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pipeline.find_layers
    calls: list[int] = []

    def lose(model: ir.Model) -> list[AttentionSite | Declined]:
        calls.append(model.opset_imports[""])
        layers = found(model)
        return layers if len(calls) == 1 else [layers[0], Declined(1, "node", "its Softmax is lost")]

    monkeypatch.setattr(pipeline, "find_layers", lose)
    model = ir.serde.deserialize_model(softmax_model(Spelling(layers=2, opset=17)))
    with pytest.raises(
        DeltaLLMError, match=r"Of 2 attention layers 1 are understood after .* 18 \(its Softmax is lost\)"
    ):
        rewrite_model(model, CONFIG)
    assert calls == [17, 18]


def test_invalid_onnx_is_refused() -> None:
    def dangling(g: GraphBuilder) -> None:
        g.node("Add", "query.0", "nowhere", output="sum")

    with pytest.raises(DeltaLLMError, match="not valid ONNX"):
        rewrite_model(dense(layers=1, changed=dangling), CONFIG)
