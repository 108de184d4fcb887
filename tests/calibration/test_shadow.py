"""Errors of single heads, against the oracle's attention on the dense model's own queries, keys and values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.probe import Probe
from deltallm_onnx.calibration.rules import find_rule, layer_plan
from deltallm_onnx.calibration.shadow import ShadowProbe
from deltallm_onnx.calibration.statistics import layer_statistics
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.reference import hold

B, S, WINDOW, SINKS = 2, 45, 7, 2
RULES = [("row", "query"), ("row", "relative"), ("element", "sigma"), ("element", "uniform")]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save_tiny_decoder(tmp_path)


@pytest.fixture
def windows() -> np.ndarray:
    return np.random.default_rng(4).integers(0, VOCABULARY, (B, S))


def projections(dense: Path, windows: np.ndarray) -> list[list[np.ndarray]]:
    """Queries, keys and values [B, H, S, D] of every layer, float64, by ONNX Runtime on the dense graph."""
    import onnxruntime as ort  # noqa: PLC0415

    model = onnx.load(dense)
    names = [f"{role}.{layer}" for layer in range(LAYERS) for role in ("query", "key", "value")]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        "input_ids": windows,
        "attention_mask": np.ones((B, S), np.int64),
        "position_ids": np.broadcast_to(np.arange(S), (B, S)).copy(),
    }
    for layer in range(LAYERS):
        for role in ("key", "value"):
            feeds[f"past_key_values.{layer}.{role}"] = np.zeros((B, KV_HEADS, 0, HEAD_SIZE), np.float32)
    found = session.run(names, feeds)
    heads = [x.reshape(B, S, -1, HEAD_SIZE).transpose(0, 2, 1, 3) for x in found]
    return [heads[3 * layer : 3 * layer + 3] for layer in range(LAYERS)]


def attended(query: np.ndarray, key: np.ndarray, held: np.ndarray, value: np.ndarray) -> np.ndarray:
    """docs/spec.md section 3, in float64: [B, Hq, S, D]."""
    G = QUERY_HEADS // KV_HEADS
    query, key, held, value = (x.astype(np.float64) for x in (query, key, held, value))
    key, held, value = (np.repeat(x, G, axis=1) for x in (key, held, value))
    i, j = np.arange(S)[:, None], np.arange(S)
    exact = (j < SINKS) | (j > i - WINDOW)
    scores = np.where(exact, query @ key.swapaxes(2, 3), query @ held.swapaxes(2, 3)) / np.sqrt(HEAD_SIZE)
    weights = np.exp(np.where(j <= i, scores, -np.inf) - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


@pytest.mark.parametrize(("granularity", "name"), RULES)
def test_errors_are_those_of_each_head_on_dense_inputs(
    dense: Path, windows: np.ndarray, granularity: str, name: str
) -> None:
    rule = find_rule(granularity, name)
    statistics = layer_statistics(dense, windows, sinks=SINKS, threads=1)
    alphas = {"query": (3.0, 0.0, 9.0), "relative": (0.9, 0.0, 1.4)}.get(name, (1.0, 0.0, 2.0))
    plan = AttentionPlan(tuple(layer_plan(rule, layer, np.array(alphas)) for layer in statistics))
    config = DeltaConfig(window=WINDOW, sinks=SINKS, cache_format="float32")
    with ShadowProbe(
        dense, config, granularity=rule.granularity, row_rule=rule.row_rule, weighted=True, threads=1
    ) as shadow:
        errors, counts = shadow.errors(windows, plan)
    for layer, (query, key, value) in enumerate(projections(dense, windows)):
        entry = plan[layer]
        held = hold(
            key,
            entry.threshold,
            granularity=entry.granularity,
            row_rule=entry.row_rule,
            row_weight=entry.row_weight,
            sinks=SINKS,
        )
        change = attended(query, key, held, value) - attended(query, key, key, value)
        expected = np.square(change).reshape(B, KV_HEADS, -1).sum(axis=(0, 2))
        # Outputs are float32 and of size 1; a difference of equal ones is at most their rounding.
        np.testing.assert_allclose(errors[layer], expected, rtol=1e-3, atol=1e-8)
        assert errors[layer][0] > 1e-3
        assert counts[layer][0, 1] > 0
        assert counts[layer][1, 1] <= counts[layer][1, 0] * 0.05


def test_no_layer_sees_what_another_holds(dense: Path, windows: np.ndarray) -> None:
    rule = find_rule("row", "relative")
    statistics = layer_statistics(dense, windows, sinks=SINKS, threads=1)
    config = DeltaConfig(window=WINDOW, sinks=SINKS, cache_format="int8")
    nothing, everything = np.zeros(KV_HEADS), np.full(KV_HEADS, 50.0)

    def plan(first: np.ndarray, second: np.ndarray) -> AttentionPlan:
        return AttentionPlan(tuple(layer_plan(rule, s, a) for s, a in zip(statistics, (first, second), strict=True)))

    with ShadowProbe(dense, config, granularity="row", weighted=True, threads=1) as shadow:
        alone, _ = shadow.errors(windows, plan(nothing, everything))
        together, _ = shadow.errors(windows, plan(everything, everything))
        logits = shadow.run(windows, plan(everything, everything))[0]
    assert np.array_equal(alone[1], together[1])
    assert (together[0] > 100 * alone[0]).all()
    with Probe(dense, DeltaConfig(window=0, sinks=0, cache_format="float32"), granularity="row", threads=1) as exact:
        expected = exact.run(windows, AttentionPlan.uniform(DeltaConfig(threshold=0.0), exact.geometry))[0]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=2e-3)
