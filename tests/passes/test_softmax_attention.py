"""Attention around a cache of Concats: what is understood computes the same afterwards, the rest is declined."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from support.attention_models import (
    FLOAT,
    HEAD_SIZE,
    INT64,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    attention_model,
    exporter_mask,
    random_feeds,
    runner,
)
from support.softmax_faults import FAULTS, before, largest_subtracted, node_of
from support.softmax_models import LOWEST, Spelling, float_constant, softmax_model

from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.passes import rewrite_model, scalar_scale
from deltallm_onnx.passes.constants import constant_of
from deltallm_onnx.passes.match import find_layers
from deltallm_onnx.passes.raise_opset import raise_opset
from deltallm_onnx.passes.site import AttentionSite, Declined

#: Exact, but for the cache: every row that left the window is coded.
EXACT = profile("exact").replace(window=2, sinks=1)
#: (new, past): first prompts, single tokens, and chunks behind a past.
SIZES = [(1, 0), (5, 0), (1, 6), (3, 11)]
#: One softmax over at most 14 float32 scores of magnitude below 30, computed in another order.
TOLERANCE = 1e-5

SPELLINGS = {
    "torch": Spelling(),
    "scale on the query": Spelling(scale="query"),
    "scale on the key": Spelling(scale="key"),
    "scale on the scores": Spelling(scale="scores"),
    "scores divided": Spelling(scale="divided"),
    "scale from the shape": Spelling(scale="computed", number=HEAD_SIZE**-0.5),
    "scale in the cache": Spelling(scale="past Concat"),
    "scale after the mask": Spelling(scale="after the mask"),
    "no scale": Spelling(scale="none"),
    "heads by Tile": Spelling(heads="tile"),
    "one KV head": Spelling(kv_heads=1),
    "one KV head, broadcast": Spelling(kv_heads=1, heads="none"),
    "one KV head, tiled": Spelling(kv_heads=1, heads="tiled"),
    "as many KV heads": Spelling(kv_heads=QUERY_HEADS, heads="none"),
    "key transposed over three axes": Spelling(swap="reshaped"),
    "mask by Where": Spelling(mask="where"),
    "mask by Where, turned around": Spelling(mask="where not"),
    "lowest number": Spelling(hidden=LOWEST),
    "window": Spelling(seen=exporter_mask(4)),
    "no padding": Spelling(seen=exporter_mask(padding=False)),
    "softcap": Spelling(softcap=1.5),
    "softcap, folded": Spelling(softcap=1.5, scale="capped"),
    "no guard": Spelling(guard=False),
    "three axes": Spelling(joined=True),
    "three axes, one KV head": Spelling(joined=True, kv_heads=1),
    "bias of heads": Spelling(bias="head"),
    "bias of queries": Spelling(bias="full"),
    "bias of three axes": Spelling(bias="three axes"),
    "bias of batch and heads": Spelling(bias="joined", joined=True),
    "several layers": Spelling(layers=3),
    "newer opset": Spelling(opset=23),
    "older opset": Spelling(opset=17),
    "oldest opset with Shape(start)": Spelling(opset=15),
    "Attention": Spelling(operator=True, mask="seen", opset=23),
    "Attention, opset 24": Spelling(operator=True, mask="seen", opset=24),
    "Attention, float mask": Spelling(operator=True, opset=23),
    "Attention, softcap": Spelling(operator=True, mask="seen", opset=23, softcap=1.5),
    "Attention, shared heads": Spelling(operator=True, mask="seen", opset=23, heads="none"),
}


def match(spelling: Spelling) -> AttentionSite | Declined:
    (found,) = find_layers(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(softmax_model(spelling))))
    return found


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = ir.serde.deserialize_model(model)
    rewrite_model(graph, EXACT)
    return ir.serde.serialize_model(graph)


@pytest.mark.parametrize("name", SPELLINGS)
def test_equals_dense(name: str) -> None:
    dense = softmax_model(SPELLINGS[name])
    delta = rewritten(dense)
    left = {node.op_type for node in delta.graph.node}
    assert not left & {"Softmax", "Attention", "MatMul", "Where", "Tanh"}
    assert [value.name for value in delta.graph.output] == [value.name for value in dense.graph.output]
    run_dense, run_delta = runner(dense), runner(delta)
    for new, past in SIZES:
        feeds = random_feeds(dense, new=new, past=past, padding=min(2, past), seed=17 * new + past)
        expected, actual = run_dense(feeds), run_delta(feeds)
        for output in expected:
            np.testing.assert_allclose(actual[output], expected[output], atol=TOLERANCE, rtol=0, err_msg=output)


@st.composite
def spellings(draw: st.DrawFn) -> Spelling:
    """Anything that can be said in one graph."""
    joined, softcap = draw(st.booleans()), draw(st.sampled_from([0.0, 1.5]))
    biases = ["", "joined"] if joined else ["", "head", "full", "three axes"]
    scales = ["query", "key", "both", "scores", "divided", "past Concat", "none"] + ["capped"] * bool(softcap)
    kv_heads = draw(st.sampled_from([1, 2, 3, 6]))
    return Spelling(
        number=draw(st.sampled_from([0.37, 1.0, 2.5])),
        scale=draw(st.sampled_from(scales)),
        heads=draw(st.sampled_from(["expand", "tile", "tiled"] + ["none"] * (kv_heads == 6))),
        kv_heads=kv_heads,
        swap=draw(st.sampled_from(["transpose", "reshaped"])),
        mask=draw(st.sampled_from(["bias", "where", "where not"])),
        hidden=draw(st.sampled_from([-math.inf, LOWEST])),
        seen=exporter_mask(draw(st.sampled_from([0, 3])), padding=draw(st.booleans())),
        bias=draw(st.sampled_from(biases)),
        softcap=softcap,
        guard=draw(st.booleans()),
        joined=joined,
    )


@settings(max_examples=40, deadline=None)
@given(spellings(), st.sampled_from(SIZES))
def test_any_spelling_is_right_or_declined(spelling: Spelling, size: tuple[int, int]) -> None:
    is_tiled = spelling.heads == "tiled" and 1 < spelling.kv_heads < QUERY_HEADS
    found = match(spelling)
    assert isinstance(found, Declined) == is_tiled, found
    if is_tiled:
        return
    dense = softmax_model(spelling)
    feeds = random_feeds(dense, new=size[0], past=size[1], padding=min(2, size[1]))
    expected, actual = runner(dense)(feeds), runner(rewritten(dense))(feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", ["Softmax", "Attention"])
def test_the_site(form: str) -> None:
    spelling = Spelling(operator=form == "Attention", mask="bias", opset=23, seen=exporter_mask(4), softcap=1.5)
    site = match(spelling)
    assert isinstance(site, AttentionSite), site
    assert (site.num_heads, site.kv_num_heads, site.head_size) == (QUERY_HEADS, KV_HEADS, HEAD_SIZE)
    assert site.scale == pytest.approx(0.37, rel=1e-6)
    assert site.softcap == 1.5
    assert site.mask.sliding_window == 4
    assert site.mask.padding is not None
    assert (site.mask.causal, site.mask.padding.name) == (True, "attention_mask")
    assert (site.query.name, site.output.name) == ("query_heads.0", "attended.0")
    assert site.key is not None
    assert (site.key.name, site.past_key.name, site.present_key.name) == (
        "key_heads.0",
        "past_key_values.0.key",
        "present.0.key",
    )


@pytest.mark.parametrize("scale", ["both", "computed"])
def test_the_usual_scale_is_exact(scale: str) -> None:
    """√s on both sides, each rounded to float32, is 1/√D again, to the last bit."""
    site = match(Spelling(scale=scale, number=HEAD_SIZE**-0.5))
    assert isinstance(site, AttentionSite)
    assert site.scale == 1 / math.sqrt(HEAD_SIZE)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_declined(name: str) -> None:
    spelling, change, words = FAULTS[name]
    found = match(Spelling(**{**spelling.__dict__, "changed": change}))
    assert isinstance(found, Declined), found
    assert words in found.reason


@pytest.mark.parametrize("axes", ["input", "attribute"])
def test_the_largest_score_may_be_subtracted(axes: str) -> None:
    """A Softmax does not notice what a whole row shares."""

    def shift(g: GraphBuilder) -> None:
        if axes == "input":
            before(g, node_of(g, "Softmax"), 0, lambda scores: largest_subtracted(g, scores, [-1]))
            return

        def subtracted(scores: str) -> str:
            return g.node("Sub", scores, g.node("ReduceMax", scores, axes=[-1], keepdims=1))

        before(g, node_of(g, "Softmax"), 0, subtracted)

    dense = softmax_model(Spelling(changed=shift, softcap=1.5, opset=18 if axes == "input" else 17))
    feeds = random_feeds(dense, new=3, past=6, padding=0)
    expected, actual = runner(dense)(feeds), runner(rewritten(dense))(feeds)
    np.testing.assert_allclose(actual["output.0"], expected["output.0"], atol=TOLERANCE, rtol=0)


def test_a_scale_is_rounded_as_its_casts_round_it() -> None:
    """0.3 in float16 is 0.30004883, and its inverse cubed is 0.05 percent off."""

    def scale(g: GraphBuilder) -> None:
        def scaled(scores: str) -> str:
            small = g.node("Cast", g.node("Cast", float_constant(g, 0.3), to=TensorProto.FLOAT16), to=FLOAT)
            return g.node("Mul", scores, g.node("Pow", small, float_constant(g, -3.0)))

        before(g, next(node for node in g.nodes if "scores.0" in node.input), 0, scaled)

    site = match(Spelling(scale="none", changed=scale))
    assert isinstance(site, AttentionSite), site
    assert site.scale == pytest.approx(float(np.float16(0.3)) ** -3, rel=1e-9)


def test_a_scale_that_reads_itself_twice_takes_one_step_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain of squares has 2²⁰ ways from its end to its beginning."""
    steps = 20

    def scale(g: GraphBuilder) -> None:
        def scaled(scores: str) -> str:
            number = float_constant(g, 1.000001)
            for _ in range(steps):
                number = g.node("Mul", number, number)
            return g.node("Mul", scores, number)

        before(g, next(node for node in g.nodes if "scores.0" in node.input), 0, scaled)

    looked_at: list[object] = []
    monkeypatch.setattr(
        scalar_scale, "constant_of", lambda value: (looked_at.append(value), constant_of(value))[1], raising=True
    )
    site = match(Spelling(scale="none", changed=scale))
    assert isinstance(site, AttentionSite), site
    assert site.scale == pytest.approx(1.000001 ** (2**steps), rel=1e-1)
    assert len(looked_at) < 40 * steps


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
def test_a_softmax_before_opset_13_is_declined(cache_format: str) -> None:
    """Without its attribute it runs over heads, queries and keys together."""
    g = GraphBuilder(12)
    g.input("input_ids", INT64, ["batch", "sequence"])
    heads = {}
    for name in ("query", "key", "value"):
        heads[name] = g.input(f"{name}.0", FLOAT, ["batch", QUERY_HEADS, "sequence", HEAD_SIZE])
    for name in ("key", "value"):
        past = g.input(f"past_key_values.0.{name}", FLOAT, ["batch", QUERY_HEADS, "past", HEAD_SIZE])
        heads[name] = g.node("Concat", past, heads[name], axis=2, output=f"present.0.{name}")
    scores = g.node("MatMul", heads["query"], g.node("Transpose", heads["key"], perm=[0, 1, 3, 2]))
    g.node("MatMul", g.node("Softmax", scores), heads["value"], output="output.0")
    g.output("output.0", FLOAT, ["batch", QUERY_HEADS, "sequence", HEAD_SIZE])
    for name in ("key", "value"):
        g.output(f"present.0.{name}", FLOAT, ["batch", QUERY_HEADS, "total", HEAD_SIZE])
    model = ir.serde.deserialize_model(g.build())
    with pytest.raises(DeltaLLMError, match=r"its Softmax is of opset 12, where it may run along several axes at once"):
        rewrite_model(model, profile("exact").replace(cache_format=cache_format))


def test_layers_of_one_product_are_declined() -> None:
    def share(g: GraphBuilder) -> None:
        for node in g.nodes:
            node.input[:] = ["scores.0" if name == "scores.1" else name for name in node.input]

    model = ir.serde.deserialize_model(softmax_model(Spelling(layers=2, changed=share)))
    with pytest.raises(
        DeltaLLMError, match=r"2 of 2 attention layers are not understood: .* 'scores\.0' are also read"
    ):
        rewrite_model(model, EXACT, allow_partial=True)


def test_is_causal_with_a_past_is_declined() -> None:
    """Query i sees keys j ≤ i of all, which is causality only where nothing is past."""

    def causal(g: GraphBuilder) -> None:
        node_of(g, "Attention").attribute.append(helper.make_attribute("is_causal", 1))

    found = match(Spelling(operator=True, mask="seen", opset=23, changed=causal))
    assert isinstance(found, Declined)
    assert "its is_causal is 1 although its keys begin with a past" in found.reason


def test_layers_that_share_a_cache_are_declined() -> None:
    def share(g: GraphBuilder) -> None:
        for node in g.nodes:
            node.input[:] = [name.replace("present.1.", "present.0.") for name in node.input]

    model = softmax_model(Spelling(layers=2, changed=share))
    for found in find_layers(ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))):
        assert isinstance(found, Declined)
        assert "as where layers share one cache" in found.reason


def _router(g: GraphBuilder) -> None:
    """Which two of four experts see a token."""
    weights = g.constant(np.ones((QUERY_HEADS * HEAD_SIZE, 4)), np.float32)
    logits = g.node("MatMul", "output.0", g.node("Mul", weights, float_constant(g, 0.5)))
    shares = g.node("Softmax", logits, axis=-1)
    best, _ = g.output("best", FLOAT, ["batch", "sequence", 2]), g.output("experts", INT64, ["batch", "sequence", 2])
    g.nodes.append(helper.make_node("TopK", [shares, g.constant([2])], [best, "experts"], axis=-1))


def test_a_router_of_experts_is_no_attention() -> None:
    model = ir.serde.deserialize_model(softmax_model(Spelling(changed=_router)))
    (site,) = find_layers(model)
    assert isinstance(site, Declined | AttentionSite)
    assert rewrite_model(model, EXACT).rewritten == 1
    assert [node.op_type for node in model.graph].count("Softmax") == 1


def _of_two_forms() -> onnx.ModelProto:
    """Layer 0 is a Softmax, layer 1 an Attention node of its own graph with layer 0's inputs."""
    decomposed = softmax_model(Spelling(opset=23))
    operator = attention_model(exporter_mask(), layout="projected")
    shared = ["input_ids", "attention_mask"]
    for values in (operator.graph.input, operator.graph.output):
        for value in (value for value in values if value.name not in shared):
            for node in operator.graph.node:
                for names in (node.input, node.output):
                    names[:] = [_second(name) if name == value.name else name for name in names]
            value.name = _second(value.name)
    operator = onnx.compose.add_prefix(operator, "b/", rename_inputs=False, rename_outputs=False)
    kept = [value for value in operator.graph.input if value.name not in shared]
    graph = helper.make_graph(
        [*decomposed.graph.node, *operator.graph.node],
        "mixed",
        [*decomposed.graph.input, *kept],
        [*decomposed.graph.output, *operator.graph.output],
        [*decomposed.graph.initializer, *operator.graph.initializer],
        value_info=operator.graph.value_info,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _second(name: str) -> str:
    return name.replace(".0", ".1")


def test_two_forms_in_one_model_are_refused() -> None:
    with pytest.raises(
        DeltaLLMError, match=r"mixes forms of attention \(layer 0 is Softmax and layer 1 is Attention\)"
    ):
        rewrite_model(ir.serde.deserialize_model(_of_two_forms()), EXACT)


def test_a_cache_that_no_layer_reads_is_refused() -> None:
    """A third cache that grows, read by something that is no Softmax."""

    def add_cache(g: GraphBuilder) -> None:
        past = g.input("state.in", FLOAT, ["batch", KV_HEADS, "past", HEAD_SIZE])
        g.node("Concat", past, "key_heads.0", axis=2, output="state.out")
        g.output("state.out", FLOAT, ["batch", KV_HEADS, "total", HEAD_SIZE])

    model = ir.serde.deserialize_model(softmax_model(Spelling(changed=add_cache)))
    with pytest.raises(DeltaLLMError, match=r"cache inputs 'state\.in' are read by no attention that was found"):
        rewrite_model(model, EXACT)
    assert rewrite_model(model, EXACT, allow_partial=True).rewritten == 1


def test_packed_caches_need_no_newer_opset() -> None:
    model = ir.serde.deserialize_model(softmax_model(Spelling(opset=17)))
    rewrite_model(model, profile("exact").replace(cache_format="int8"))
    assert model.opset_imports[""] == 17


def test_an_opset_that_is_not_converted_is_refused() -> None:
    model = softmax_model(Spelling(opset=18))
    model.opset_import[0].version = 12
    with pytest.raises(DeltaLLMError, match=r"uses opset 12, .* or choose a packed cache_format"):
        raise_opset(ir.serde.deserialize_model(model))
