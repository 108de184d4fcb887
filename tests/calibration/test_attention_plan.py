"""A plan survives JSON bit by bit, and a wrong one is told apart in one sentence."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from support.random_plans import random_plan

from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry, LayerPlan

GEOMETRY = (LayerGeometry(0, 6, 3, 5), LayerGeometry(2, 6, 2, 5), LayerGeometry(3, 6, 6, 7))
FLOATS = st.floats(0, float(np.finfo(np.float32).max), width=32)


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None) == (b is None) and (a is None or (a.dtype == b.dtype == np.float32 and np.array_equal(a, b)))


@settings(deadline=None)
@given(st.data())
def test_json_round_trip_keeps_every_bit(data: st.DataObject) -> None:
    heads, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    granularity = data.draw(st.sampled_from(["element", "row"]))
    table = granularity == "element" and data.draw(st.booleans())
    weighted = granularity == "row" and data.draw(st.booleans())
    layer = LayerPlan(
        layer=data.draw(st.integers(0, 200)),
        threshold=data.draw(hnp.arrays(np.float32, (heads, size) if table else heads, elements=FLOATS)),
        row_weight=data.draw(hnp.arrays(np.float32, (heads, size), elements=FLOATS)) if weighted else None,
        granularity=granularity,
        row_rule=data.draw(st.sampled_from(["relative", "absolute"])),
        v_skip=data.draw(st.floats(0, 1, exclude_max=True)),
    )
    plan = AttentionPlan((layer,))
    again = AttentionPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    (read,) = again.layers
    assert same(read.threshold, layer.threshold)
    assert same(read.row_weight, layer.row_weight)
    fields = ("layer", "granularity", "row_rule", "v_skip", "form", "kv_num_heads", "head_size")
    assert [getattr(read, name) for name in fields] == [getattr(layer, name) for name in fields]
    assert again.sha256 == plan.sha256


def test_layers_come_in_order_and_change_the_digest() -> None:
    plan = random_plan(GEOMETRY, granularity=("element", "row", "row"), weighted=(False, True, False))
    turned = AttentionPlan(plan.layers[::-1])
    assert [entry.layer for entry in turned.layers] == [0, 2, 3]
    assert turned.sha256 == plan.sha256
    assert plan.facts()["rules"] == {
        "element per channel": [0],
        "row relative weighted": [2],
        "row relative": [3],
    }
    nudged = plan[2].replace(threshold=np.nextafter(plan[2].threshold, np.float32(9)))
    assert AttentionPlan((plan[0], nudged, plan[3])).sha256 != plan.sha256


def test_arrays_cannot_change_behind_the_checks() -> None:
    mine = np.full(3, 0.5, np.float32)
    entry = LayerPlan(0, mine, None, "row", "relative")
    mine[0] = -1
    assert entry.threshold[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        entry.threshold[0] = -1


def test_uniform_says_what_the_configuration_says() -> None:
    config = DeltaConfig(threshold=0.25, granularity="row", row_rule="absolute", v_skip=0.125)
    plan = AttentionPlan.uniform(config, GEOMETRY)
    for entry, layer in zip(plan.layers, GEOMETRY, strict=True):
        assert entry.layer == layer.layer
        assert same(entry.threshold, np.full(layer.kv_num_heads, 0.25, np.float32))
        assert entry.row_weight is None
        assert (entry.granularity, entry.row_rule, entry.v_skip) == ("row", "absolute", 0.125)


MISFITS = {
    "missing": (GEOMETRY[:2], "The plan says nothing of attention layer 3"),
    "unknown": ((*GEOMETRY, LayerGeometry(9, 2, 1, 4)), "has a layer 9, which is no attention layer"),
    "heads": ((*GEOMETRY[:2], LayerGeometry(3, 6, 2, 7)), "has 2 KV heads in layer 3, the model has 6"),
    "channels": ((*GEOMETRY[:2], LayerGeometry(3, 6, 6, 8)), "has 8 channels per head in layer 3, the model has 7"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_models_plan_is_refused(name: str) -> None:
    geometry, sentence = MISFITS[name]
    with pytest.raises(DeltaLLMError, match=sentence):
        random_plan(geometry, granularity="element").refuse_misfit(GEOMETRY)


def test_one_number_per_head_fits_any_head_size() -> None:
    plan = AttentionPlan.uniform(DeltaConfig(), (LayerGeometry(0, 6, 3, 64),))
    plan.refuse_misfit(GEOMETRY[:1])


def layer(**changes: Any) -> dict[str, Any]:
    good = {
        "layer": 1,
        "granularity": "row",
        "row_rule": "relative",
        "v_skip": 0.0,
        "threshold": [0.5, 0.25],
        "row_weight": [[1, 2, 3], [4, 5, 6]],
    }
    return {**good, **changes}


ELEMENT = {"granularity": "element", "row_weight": None}
WRONG_LAYERS = {
    "no object": ([3], r"plan\.json holds a int where a layer should be"),
    "no key": ([{k: v for k, v in layer().items() if k != "row_weight"}], "a layer without 'row_weight'"),
    "more keys": ([layer(rule="query")], "the unknown key 'rule'"),
    "twice": ([layer(), layer()], "The plan has layer 1 twice"),
    "none": ([], "has no layer"),
    "negative layer": ([layer(layer=-1)], "the layer -1"),
    "truth as layer": ([layer(layer=True)], "the layer True"),
    "text as layer": ([layer(layer="1")], "the layer '1'"),
    "granularity": ([layer(granularity="rows")], "layer 1 has the granularity 'rows'"),
    "list as rule": ([layer(row_rule=["relative"])], "layer 1 has the row_rule"),
    "v_skip of 1": ([layer(v_skip=1)], "layer 1 has the v_skip 1"),
    "v_skip not a number": ([layer(v_skip=float("nan"))], "layer 1 has the v_skip nan"),
    "text as v_skip": ([layer(v_skip="0.1")], "layer 1 has the v_skip '0.1'"),
    "negative θ": ([layer(threshold=[0.5, -0.25])], "layer 1, threshold holds a negative or non-finite number"),
    "θ not a number": ([layer(threshold=[0.5, float("nan")])], "layer 1, threshold holds a negative or non-finite"),
    "θ beyond float32": ([layer(threshold=[0.5, 1e39])], "layer 1, threshold holds a negative or non-finite"),
    "θ beyond double": ([layer(threshold=[0.5, 10**400])], "layer 1, threshold is not a list of numbers"),
    "θ empty": ([layer(threshold=[])], "layer 1, threshold is not a list of numbers"),
    "θ one number": ([layer(threshold=0.5)], "layer 1, threshold is not a list of numbers"),
    "θ text": ([layer(threshold="0.5")], "layer 1, threshold is not a list of numbers"),
    "θ truths": ([layer(threshold=[True, False])], "layer 1, threshold is not a list of numbers"),
    "θ ragged": ([layer(**ELEMENT, threshold=[[1, 2], [3]])], "layer 1, threshold is not a list of numbers"),
    "θ half a table": ([layer(**ELEMENT, threshold=[[1, 2], 3])], "layer 1, threshold is not a list of numbers"),
    "θ three axes": ([layer(**ELEMENT, threshold=[[[1]]])], "layer 1, threshold is not a list of numbers"),
    "θ per channel of rows": ([layer(threshold=[[1, 2, 3], [4, 5, 6]])], "granularity row takes one number"),
    "weights of elements": ([layer(granularity="element")], "layer 1 has a row_weight with granularity element"),
    "negative weight": ([layer(row_weight=[[1, 2, 3], [4, -5, 6]])], "layer 1, row_weight holds a negative"),
    "weights of other heads": ([layer(row_weight=[[1, 2, 3]])], r"a row_weight \[1, 3\] beside a threshold for 2"),
    "flat weights": ([layer(row_weight=[1, 2])], r"a row_weight \[2\]"),
}


@pytest.mark.parametrize("name", WRONG_LAYERS)
def test_wrong_layers_are_refused(name: str) -> None:
    layers, sentence = WRONG_LAYERS[name]
    with pytest.raises(DeltaLLMError, match=sentence) as refusal:
        AttentionPlan.from_dict({"layers": layers}, "plan.json")
    text = str(refusal.value)
    assert text.startswith("plan.json")
    assert text.count("\n") == 0
    assert text.endswith(".")


@pytest.mark.parametrize("data", [None, [], {"layers": {}}, {"layer": []}, "layers"])
def test_something_else_is_refused(data: Any) -> None:
    with pytest.raises(DeltaLLMError, match=r"plan\.json has no list of layers"):
        AttentionPlan.from_dict(data, "plan.json")


def test_the_good_layer_is_good() -> None:
    plan = AttentionPlan.from_dict({"layers": [layer()], "seed": 3})
    assert plan.layers[0].head_size == 3
    assert same(plan[1].row_weight, np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    with pytest.raises(KeyError):
        plan[0]
