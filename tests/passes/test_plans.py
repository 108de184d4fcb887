"""What a plan becomes in the graph, and the models that cannot take one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.random_plans import random_plan
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY, tiny_decoder

from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.calibration.session import open_session, run_windows
from deltallm_onnx.dense_model import DenseModel
from deltallm_onnx.passes import model_geometry, naming, rewrite_model
from deltallm_onnx.runtime import DecoderModel

GEOMETRY = tuple(LayerGeometry(layer, QUERY_HEADS, KV_HEADS, HEAD_SIZE) for layer in range(LAYERS))
CONFIG = DeltaConfig(threshold=0.125, window=7, sinks=2, cache_format="float32", prefill="delta")
PACKED = CONFIG.replace(cache_format="int8")
MIXED: dict[str, Any] = {"granularity": ("element", "row"), "weighted": True, "v_skip": (0.0, 0.25)}


def rewritten(config: DeltaConfig, plan: AttentionPlan | None, **options: Any) -> ir.Model:
    model = ir.serde.deserialize_model(tiny_decoder())
    rewrite_model(model, config, plan=plan, **options)
    return model


def written(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_geometry_is_found_in_the_dense_graph() -> None:
    assert model_geometry(ir.serde.deserialize_model(tiny_decoder())) == GEOMETRY
    with pytest.raises(DeltaLLMError, match="already rewritten"):
        model_geometry(rewritten(CONFIG, None))


def test_every_layer_gets_its_own() -> None:
    plan = random_plan(GEOMETRY, **MIXED)
    model = rewritten(PACKED, plan)
    nodes = naming.delta_nodes(model)
    for entry, node in zip(plan.layers, nodes, strict=True):
        theta = node.inputs[naming.THRESHOLD]
        assert theta.name == f"deltallm.threshold.{entry.layer}"
        np.testing.assert_array_equal(theta.const_value.numpy(), entry.threshold)
        values = {name: node.attributes[name].value for name in ("granularity", "row_rule", "v_skip")}
        assert values == {"granularity": entry.granularity, "row_rule": entry.row_rule, "v_skip": entry.v_skip}
    assert nodes[0].inputs[naming.ROW_WEIGHT] is None
    np.testing.assert_array_equal(written(model, "deltallm.row_weight.1"), plan[1].row_weight)
    assert nodes[1].inputs[17].name == "deltallm.row_weight.1"
    assert nodes[0].attributes["delta_window"].value == CONFIG.window


def test_the_metadata_names_the_plan_and_not_what_it_overrides() -> None:
    plan = random_plan(GEOMETRY, **MIXED)
    properties = rewritten(PACKED, plan).metadata_props
    facts = json.loads(properties["deltallm.plan"])
    assert facts == {"rules": {"element per channel": [0], "row relative weighted": [1]}, "sha256": plan.sha256}
    said = json.loads(properties["deltallm.config"])
    assert {"threshold", "granularity", "row_rule", "v_skip"} & said.keys() == set()
    assert DeltaConfig.from_dict({**said, "threshold": 0.125}) == PACKED
    assert "deltallm.plan" not in rewritten(PACKED, None).metadata_props


def test_a_uniform_plan_writes_the_same_nodes_as_none() -> None:
    config = CONFIG.replace(v_skip=0.0625, row_rule="absolute")
    protos = []
    for plan in (None, AttentionPlan.uniform(config, GEOMETRY)):
        model = rewritten(config, plan)
        model.metadata_props.clear()
        protos.append(ir.serde.serialize_model(model))
    assert protos[0].SerializeToString(deterministic=True) == protos[1].SerializeToString(deterministic=True)


def decoded(path: Path, *, use_library: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Two sequences of a prompt and two single tokens."""
    model = DecoderModel(path, use_library=use_library, threads=1)
    cache = model.new_cache(batch=2)
    ids = np.random.default_rng(6).integers(0, VOCABULARY, (2, 25))
    steps = [model.step(ids[:, begin:end], cache) for begin, end in ((0, 23), (23, 24), (24, 25))]
    counts = [np.sum(layer, axis=0) for layer in zip(*(statistics for _, statistics in steps), strict=True)]
    return np.concatenate([logits for logits, _ in steps], axis=1), counts


KINDS: dict[str, dict[str, Any]] = {
    "element per channel": {"granularity": "element"},
    "weighted rows": {"row_rule": "absolute", "weighted": True, "largest": 6.0},
    "some rows weighted": {"row_rule": "absolute", "weighted": (False, True), "largest": 6.0},
    "v_skip in one layer": {"v_skip": (0.0, 0.05), "largest": 1.4},
}


@pytest.mark.parametrize("unfused", [False, True], ids=["fused", "unfused"])
@pytest.mark.parametrize("kind", KINDS)
def test_function_bodies_follow_the_plan(tmp_path: Path, kind: str, *, unfused: bool) -> None:
    """Thresholds per channel and row weights mean the same without the library, fused and not."""
    plan = random_plan(GEOMETRY, seed=2, **KINDS[kind])
    # The operator itself is compared with the oracle elsewhere; without functions nothing of the plan is unified.
    operator = rewritten(CONFIG, plan, statistics=True, fallback=False)
    ir.save(operator, tmp_path / "operator.onnx")
    ir.save(rewritten(CONFIG, plan, statistics=True, unfused=unfused), tmp_path / "functions.onnx")
    logits, counts = decoded(tmp_path / "operator.onnx", use_library=True)
    found, found_counts = decoded(tmp_path / "functions.onnx", use_library=False)
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    exact = np.ones(8, bool)
    exact[5] = "v_skip" not in KINDS[kind]  # blocks of keys may leave out fewer values
    for layer in range(LAYERS):
        np.testing.assert_array_equal(found_counts[layer][:, exact], counts[layer][:, exact])
    assert sum(layer[:, 1].sum() for layer in counts) > 0
    assert not operator.functions


def test_weights_of_one_hold_as_none() -> None:
    """Where one layer has weights, the others get ones in a file with functions: every decision stays."""
    plan = random_plan(GEOMETRY, seed=2, row_rule="absolute", weighted=(False, True), largest=6.0)
    ids = np.random.default_rng(6).integers(0, VOCABULARY, (2, 25))
    results = []
    for fallback in (True, False):
        model = rewritten(CONFIG, plan, statistics=True, fallback=fallback)
        assert ("deltallm.row_weight.0" in model.graph.initializers) == fallback
        names = ["logits", "statistics.0", "statistics.1"]
        results.append(
            run_windows(open_session(DenseModel(Path("tiny.onnx"), model, (), ""), threads=1), ids, names, {})
        )
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert results[0][1][:, 1].sum() > 0


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ({"granularity": ("element", "row")}, "granularity element in layer 0 and row in layer 1"),
        ({"row_rule": ("relative", "absolute")}, "row_rule relative in layer 0 and absolute in layer 1"),
    ],
)
def test_mixed_rules_need_a_packed_cache(kind: dict[str, Any], sentence: str) -> None:
    plan = random_plan(GEOMETRY, **kind)
    for options in ({}, {"unfused": True}):
        with pytest.raises(DeltaLLMError, match=f"{sentence}, which one fallback function cannot serve: choose a"):
            rewritten(CONFIG, plan, **options)
    rewritten(PACKED, plan)


def test_rules_of_elements_are_not_read() -> None:
    """row_rule means nothing with granularity "element", so it may differ there."""
    rewritten(CONFIG, random_plan(GEOMETRY, granularity="element", row_rule=("relative", "absolute")))


@pytest.mark.parametrize("config", [CONFIG, PACKED], ids=["float32", "int8"])
def test_another_models_plan_is_refused_before_anything_changes(config: DeltaConfig) -> None:
    wrong = (GEOMETRY[0], LayerGeometry(1, QUERY_HEADS, KV_HEADS, HEAD_SIZE + 1))
    model = ir.serde.deserialize_model(tiny_decoder())
    with pytest.raises(DeltaLLMError, match="The plan has 9 channels per head in layer 1, the model has 8"):
        rewrite_model(model, config, plan=random_plan(wrong, weighted=True))
    assert not naming.delta_nodes(model)
    onnx.checker.check_model(ir.serde.serialize_model(model))
