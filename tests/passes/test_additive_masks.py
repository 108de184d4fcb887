"""Masks of numbers and gathered padding: what is claimed is what ONNX Runtime computes, the rest is declined."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass
from support.attention_models import GraphBuilder, Mask, seen_by_position
from support.mask_claims import SIZES, claimed, computed_by, paddings
from support.mask_spellings import meant
from support.mask_spellings_additive import ADDITIVE, NEAR_MISSES, alibi, mask_graph, padding_bias
from support.mask_spellings_gathered import expanded, gather_nd_padding, listed

from deltallm_onnx.passes.affine import Affine, dimension
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import FiniteBias, MaskContract, conjunction, is_hiding, read_hidden, read_mask
from deltallm_onnx.passes.site import MaskMeaning, NotUnderstood


def reason(build: Mask) -> str:
    """Why a mask is declined; one that is not causal is none, though nothing about it need be wrong."""
    with pytest.raises(NotUnderstood) as declined:
        assert claimed(mask_graph(build)).causal
    return str(declined.value)


@pytest.mark.parametrize("name", ADDITIVE)
def test_spelling_is_understood(name: str) -> None:
    spelling = ADDITIVE[name]
    meaning = claimed(mask_graph(spelling.build))
    assert meaning.causal == spelling.causal
    assert meaning.sliding_window == spelling.window
    assert (meaning.padding.name if meaning.padding else None) == ("attention_mask" if spelling.padding else None)


@pytest.mark.parametrize("name", ADDITIVE)
def test_spelling_means_what_the_graph_computes(name: str) -> None:
    seen_keys = computed_by(mask_graph(ADDITIVE[name].build))
    for new, past in SIZES:
        for padding in paddings(3, past + new):
            expected = meant(ADDITIVE[name], new=new, past=past, padding=padding)
            np.testing.assert_array_equal(seen_keys(new, past, padding), expected)


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_is_declined(name: str) -> None:
    build, words = NEAR_MISSES[name]
    assert words in reason(build)


def test_finite_data_is_a_bias_of_its_own() -> None:
    """ALiBi hides nothing: it may be added as it is, beside a mask that is proven."""
    with pytest.raises(FiniteBias, match="is no mask of 0 and −∞"):
        claimed(mask_graph(alibi))


def test_a_bias_that_also_hides_is_not_finite() -> None:
    with pytest.raises(NotUnderstood) as declined:
        claimed(mask_graph(lambda g: g.node("Add", alibi(g), padding_bias()(g))))
    assert not isinstance(declined.value, FiniteBias)


def test_minus_ten_thousand_is_not_finite_data() -> None:
    """It is meant to hide, and does not: no way to keep what it computes is taken silently."""
    with pytest.raises(NotUnderstood) as declined:
        claimed(mask_graph(padding_bias(-10000)))
    assert not isinstance(declined.value, FiniteBias)


def test_gathered_rows_need_a_known_batch() -> None:
    """The rows come from past_key, whose batch is not that of the padding mask by name."""
    model = mask_graph(lambda g: g.node("And", seen_by_position(g), gather_nd_padding(g)))
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "rows"
    loaded = ShapeInferencePass()(ir.serde.deserialize_model(model)).model
    mask, (ids, _, past) = loaded.graph.outputs[0], loaded.graph.inputs
    lengths = dimension(past, 2), dimension(ids, 1)
    assert read_mask(mask, MaskContract(*lengths, dimension(past, 0)), MaskInterpreter()).padding is not None
    with pytest.raises(NotUnderstood, match="takes batch rows of 'attention_mask', and the batch has rows"):
        read_mask(mask, MaskContract(*lengths), MaskInterpreter())


@pytest.mark.parametrize("name", ["flat gather", "gathered tuples", "optimum", "written over"])
@pytest.mark.parametrize("fixed", [{"batch": 1}, {"sequence": 1}, {"batch": 1, "sequence": 1}, {"batch": 3, "past": 9}])
def test_fixed_lengths_are_understood_too(name: str, fixed: dict[str, int]) -> None:
    model = mask_graph(ADDITIVE[name].build, fixed)
    meaning = claimed(model)
    assert meaning.causal
    assert meaning.padding is not None


def test_masks_together() -> None:
    causal = MaskMeaning(causal=True, sliding_window=None, padding=None)
    ids, other = (ir.Value(name=name) for name in ("attention_mask", "other_mask"))
    first = MaskMeaning(causal=False, sliding_window=7, padding=ids)
    second = MaskMeaning(causal=False, sliding_window=4, padding=None)
    assert conjunction(causal, first) == MaskMeaning(causal=True, sliding_window=7, padding=ids)
    assert conjunction(first, second) == MaskMeaning(causal=False, sliding_window=4, padding=ids)
    with pytest.raises(NotUnderstood, match="'attention_mask' and 'other_mask'"):
        conjunction(first, MaskMeaning(causal=True, sliding_window=None, padding=other))


def test_a_condition_that_hides() -> None:
    """Where(condition, −∞, scores) hides where the condition is true."""
    model = mask_graph(lambda g: g.node("Not", seen_by_position(g, 3)))
    loaded = ir.serde.deserialize_model(model)
    ids, past = loaded.graph.inputs[0], loaded.graph.inputs[2]
    contract = MaskContract(dimension(past, 2), dimension(ids, 1))
    meaning = read_hidden(loaded.graph.outputs[0], contract, MaskInterpreter())
    assert meaning == MaskMeaning(causal=True, sliding_window=3, padding=None)
    with pytest.raises(NotUnderstood):
        read_mask(loaded.graph.outputs[0], contract, MaskInterpreter())


@pytest.mark.parametrize(
    ("number", "hides"),
    [(-np.inf, True), (-3.4028235e38, True), (-1e31, True), (-9e29, False), (-1e9, False), (-65504, False), (0, False)],
)
def test_what_hides(number: float, hides: bool) -> None:
    value = ir.Value(name="fill", const_value=ir.tensor(np.array(number, np.float32)))
    assert is_hiding(value) == hides


@pytest.mark.parametrize(("number", "hides"), [(-np.inf, True), (-65504, True), (-65472, False), (-1e4, False)])
def test_what_hides_in_float16(number: float, hides: bool) -> None:
    value = ir.Value(name="fill", const_value=ir.tensor(np.array(number, np.float16)))
    assert is_hiding(value) == hides


def test_a_score_is_not_a_constant_that_hides() -> None:
    assert not is_hiding(ir.Value(name="scores"))
    mixed = ir.Value(name="fill", const_value=ir.tensor(np.array([0, -np.inf], np.float32)))
    assert not is_hiding(mixed)


@pytest.mark.parametrize("hidden", [-np.inf, -3.4028235e38])
def test_hidden_keys_have_probability_zero(hidden: float) -> None:
    """What "hides" rests on: the softmax of a hidden score is exactly 0, whatever the seen ones are."""
    scores = np.random.default_rng(3).standard_normal((64, 11)).astype(np.float32) * 30
    scores[:, ::3] += np.float32(hidden)
    with np.errstate(over="ignore"):
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert not weights[:, ::3].any()
    assert weights.any(axis=1).all()


def test_lengths_are_derived_where_the_graph_names_none() -> None:
    """Shape of keys that were repeated for their heads is still past + new."""
    g = GraphBuilder(18)
    g.input("new", 1, ["batch", 2, "sequence", 5])
    g.input("past", 1, ["batch", 2, "past", 5])
    present = g.node("Concat", "past", "new", axis=2)
    lengths = [g.node("Gather", g.node("Shape", present), axis, axis=0) for axis in range(4)]
    wide = g.node("Unsqueeze", present, [2])
    wide = expanded(g, wide, listed(g, lengths[0], 2, 3, lengths[2], lengths[3]))
    joined = g.node("Reshape", wide, listed(g, lengths[0], g.node("Mul", lengths[1], 3), lengths[2], lengths[3]))
    flat = g.node("Reshape", g.node("Transpose", joined, perm=[0, 2, 1, 3]), [0, 0, -1])
    g.outputs.append(onnx.ValueInfoProto(name=flat))
    model = ir.serde.deserialize_model(g.build())
    total = Affine.symbol("past") + Affine.symbol("sequence")
    assert MaskInterpreter().shape(model.graph.outputs[0]) == (Affine.symbol("batch"), total, Affine(30))
