"""The mask interpreter: what it proves is what the graph computes, and what it cannot prove it declines."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from support.attention_models import GraphBuilder, attention_model, key_positions, query_positions, seen_by_position
from support.mask_spellings import NEAR_MISSES, SPELLINGS, mask_values, meant

from deltallm_onnx.passes.match import find_layers
from deltallm_onnx.passes.site import AttentionSite, Declined

SIZES = [(1, 0), (5, 0), (1, 7), (3, 11), (4, 1)]


def left_padding(batch: int, total: int) -> NDArray[np.int64]:
    """Row b has b padding tokens."""
    return (np.arange(total)[None, :] >= np.arange(batch)[:, None]).astype(np.int64)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_is_understood(name: str) -> None:
    spelling = SPELLINGS[name]
    model = ir.serde.deserialize_model(attention_model(spelling.build, is_causal=1))
    (site,) = find_layers(model)
    assert isinstance(site, AttentionSite), site
    assert site.mask.sliding_window == spelling.window
    assert site.mask.padding is (model.graph.inputs[1] if spelling.padding else None)


@pytest.mark.parametrize("name", SPELLINGS)
def test_causality_is_not_taken_for_granted(name: str) -> None:
    """Without is_causal, only a mask that is causal by itself is enough."""
    spelling = SPELLINGS[name]
    (site,) = find_layers(ir.serde.deserialize_model(attention_model(spelling.build)))
    assert isinstance(site, AttentionSite) == spelling.causal
    if not spelling.causal:
        assert "not causal" in site.reason


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_means_what_the_graph_computes(name: str) -> None:
    for new, past in SIZES:
        padding = left_padding(3, past + new)
        computed = mask_values(SPELLINGS[name].build, batch=3, new=new, past=past, padding=padding)
        np.testing.assert_array_equal(computed, meant(SPELLINGS[name], new=new, past=past, padding=padding))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_miss_is_declined(name: str) -> None:
    build, words = NEAR_MISSES[name]
    (site,) = find_layers(ir.serde.deserialize_model(attention_model(build)))
    assert isinstance(site, Declined), site
    assert words in site.reason


def test_reason_names_the_node() -> None:
    build, _ = NEAR_MISSES["parity"]
    (declined,) = find_layers(ir.serde.deserialize_model(attention_model(build)))
    assert "n_mod_" in declined.reason


def test_mask_from_another_input_is_declined() -> None:
    def build(g: GraphBuilder) -> str:
        return g.input("mask", 9, ["batch", 1, "sequence", "total"])

    (declined,) = find_layers(ir.serde.deserialize_model(attention_model(build)))
    assert "rank 4" in declined.reason


def test_padding_from_two_inputs_is_declined() -> None:
    def build(g: GraphBuilder) -> str:
        other = g.input("other_mask", 7, ["batch", "total"])
        cast = [g.node("Unsqueeze", g.node("Cast", name, to=9), [1, 2]) for name in ("attention_mask", other)]
        return g.node("And", *cast)

    (declined,) = find_layers(ir.serde.deserialize_model(attention_model(build, is_causal=1)))
    assert "'attention_mask'" in declined.reason
    assert "'other_mask'" in declined.reason


def test_a_deep_mask_is_declined_without_recursion_error() -> None:
    def build(g: GraphBuilder) -> str:
        value = SPELLINGS["exporter"].build(g)
        for _ in range(3000):
            value = g.node("Not", g.node("Not", value))
        return value

    (declined,) = find_layers(ir.serde.deserialize_model(attention_model(build)))
    assert "chain of more than" in declined.reason


def test_a_mask_that_depends_on_a_default_is_declined() -> None:
    """An initializer that is a graph input too is only a default: the window could be anything."""

    def build(g: GraphBuilder) -> str:
        window = g.input(g.constant(4), 7, [])
        inside = g.node("Greater", key_positions(g), g.node("Sub", query_positions(g), window))
        return g.node("And", inside, seen_by_position(g))

    (declined,) = find_layers(ir.serde.deserialize_model(attention_model(build)))
    assert "graph input" in declined.reason
