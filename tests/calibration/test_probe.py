"""The probe measures what the rewritten model does: its counts are the oracle's, its logits those of decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.command_line import files_below
from support.random_plans import random_plan
from support.tiny_decoder import (
    HEAD_SIZE,
    KV_HEADS,
    LAYERS,
    QUERY_HEADS,
    VOCABULARY,
    save_tiny_decoder,
    tiny_decoder,
)

import deltallm_onnx.calibration.probe as probe_module
from deltallm_onnx import DeltaConfig, DeltaLLMError, rewrite
from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.probe import LayerGeometry, Probe
from deltallm_onnx.calibration.session import run_windows
from deltallm_onnx.passes import naming
from deltallm_onnx.reference import delta_attention
from deltallm_onnx.runtime import DecoderModel

GEOMETRY = tuple(LayerGeometry(layer, QUERY_HEADS, KV_HEADS, HEAD_SIZE) for layer in range(LAYERS))
#: Odd, and not a multiple of a tile or a window.
WINDOWS, TOKENS = 3, 47
CONFIG = DeltaConfig(window=11, sinks=3, cache_format="float32")

#: settings of the probe and its plan; v_skip and rules differ between layers where they may.
KINDS: dict[str, dict[str, Any]] = {
    "element per channel": {"granularity": "element", "largest": 0.6},
    "element per head": {"granularity": "element", "per_channel": False, "largest": 0.6},
    "row relative": {"granularity": "row"},
    "row absolute": {"granularity": "row", "row_rule": "absolute", "largest": 2.5},
    "row weighted": {"granularity": "row", "row_rule": "absolute", "weighted": True, "largest": 2.5},
    "rows of two rules": {"granularity": "row", "row_rule": ("relative", "absolute"), "weighted": (True, False)},
    "element and row": {"granularity": ("element", "row"), "v_skip": (0.0, 0.01)},
}


def tokens(windows: int = WINDOWS, length: int = TOKENS, seed: int = 5) -> np.ndarray:
    """Text that repeats itself now and then, so that some keys stay close to the one before."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, VOCABULARY, (windows, length))
    repeat = random.random((windows, length)) < 0.4
    for t in range(1, length):
        ids[:, t] = np.where(repeat[:, t], ids[:, t - 1], ids[:, t])
    return ids


def opened(dense: Path, config: DeltaConfig, kind: dict[str, Any]) -> Probe:
    settings = {key: value for key, value in kind.items() if key not in ("per_channel", "largest")}
    return Probe(dense, config, threads=1, **settings)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("probe"))


@pytest.mark.parametrize("cache_format", ["float32", "int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_the_oracles(dense: Path, kind: str, cache_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle gets the very queries, keys and values that the operator gets in the same call."""
    config = CONFIG.replace(cache_format=cache_format, refresh=17)
    plan = random_plan(GEOMETRY, seed=8, **KINDS[kind])
    exposed: list[list[str]] = []

    def opening(source: Any, **options: Any) -> Any:
        for node in naming.delta_nodes(source.model):
            source.model.graph.outputs.extend([*node.inputs[:3], node.outputs[0]])
            exposed.append([str(value.name) for value in (*node.inputs[:3], node.outputs[0])])
        return original(source, **options)

    original = probe_module.open_session
    monkeypatch.setattr(probe_module, "open_session", opening)
    windows = tokens()
    with opened(dense, config, KINDS[kind]) as probe:
        _, statistics = probe.run(windows, plan)
        names = [name for layer in exposed for name in layer]
        tensors = dict(zip(names, run_windows(probe._session, windows, names, probe._feeds(plan)), strict=True))
    held = 0
    for layer, (query, key, value, output) in enumerate(exposed):
        entry = plan[layer]
        expected, _, _, counts = delta_attention(
            tensors[query],
            tensors[key],
            tensors[value],
            attention_mask=np.ones(windows.shape, np.int64),
            threshold=entry.threshold,
            row_weight=entry.row_weight,
            num_heads=QUERY_HEADS,
            kv_num_heads=KV_HEADS,
            delta_window=config.window,
            sinks=config.sinks,
            refresh=config.refresh,
            granularity=entry.granularity,
            row_rule=entry.row_rule,
            v_skip=entry.v_skip,
            prefill="delta",
            cache_format=cache_format,
        )
        counted = np.ones(8, bool)
        # Blocks of keys compare with the largest probability so far, and may leave out fewer (docs/spec.md section 5).
        counted[5] = entry.v_skip == 0
        np.testing.assert_array_equal(statistics[layer][:, counted], counts[:, counted], err_msg=f"layer {layer}")
        if cache_format == "float32" and entry.v_skip == 0:
            np.testing.assert_allclose(tensors[output], expected, atol=1e-5, rtol=1e-5)
        assert counts[0, 0] > 0
        held += counts[:, 1].sum()
    assert held > 0, "a plan that holds nothing proves nothing"


@pytest.mark.parametrize("cache_format", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["element per channel", "row weighted", "row relative"])
def test_logits_are_those_of_decoding(dense: Path, tmp_path: Path, kind: str, cache_format: str) -> None:
    """docs/spec.md section 3: one call with prefill = "delta" is token-by-token decoding of the rewritten model."""
    config = CONFIG.replace(cache_format=cache_format)
    plan = random_plan(GEOMETRY, seed=9, **KINDS[kind])
    windows = tokens()
    with opened(dense, config, KINDS[kind]) as probe:
        logits, _ = probe.run(windows, plan)
        exact, _ = probe.run(windows, random_plan(GEOMETRY, **{**KINDS[kind], "largest": 0.0}))
    rewrite(dense, tmp_path / "delta.onnx", config, plan=plan)
    model = DecoderModel(tmp_path / "delta.onnx", threads=1)
    cache = model.new_cache(batch=WINDOWS)
    steps = [model.step(windows[:, t : t + 1], cache)[0] for t in range(TOKENS)]
    decoded = np.concatenate(steps, axis=1)
    scale = np.abs(decoded).max()
    np.testing.assert_allclose(logits, decoded, atol=1e-5 * scale, rtol=0)
    assert np.abs(logits - exact).max() > 1e-2 * scale, "held keys must be seen in the logits"


def test_a_batch_is_its_windows(dense: Path) -> None:
    plan = random_plan(GEOMETRY, seed=3)
    windows = tokens()
    with Probe(dense, CONFIG, granularity="row", threads=1) as probe:
        logits, statistics = probe.run(windows, plan)
        alone = [probe.run(window[None], plan) for window in windows]
    assert logits.shape == (WINDOWS, TOKENS, VOCABULARY)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, np.concatenate([one for one, _ in alone]), atol=1e-4, rtol=0)
    for layer in range(LAYERS):
        assert statistics[layer].shape == (KV_HEADS, 8)
        np.testing.assert_array_equal(statistics[layer], sum(counts[layer] for _, counts in alone))


def test_one_probe_serves_many_plans(dense: Path) -> None:
    """Held tokens grow with θ; a weighted probe takes plans without weights, which weigh every channel by one."""
    windows, held = tokens(), []
    with Probe(dense, CONFIG, granularity="row", weighted=True, threads=1) as probe:
        for largest in (0.0, 0.8, 1.4, 50.0):
            _, statistics = probe.run(windows, random_plan(GEOMETRY, largest=largest))
            held.append(sum(int(counts[:, 1].sum()) for counts in statistics))
            total = sum(int(counts[:, 0].sum()) for counts in statistics)
    assert held == sorted(set(held))
    assert held[-1] == total == LAYERS * KV_HEADS * WINDOWS * (TOKENS - CONFIG.window - CONFIG.sinks)


@pytest.mark.parametrize("grouped_query", [False, True])
def test_weights_stay_in_their_file(tmp_path: Path, *, grouped_query: bool) -> None:
    """The model's folder is as before, and what the probe reads is the data file beside the model."""
    model = tiny_decoder(grouped_query=grouped_query)
    onnx.save(model, tmp_path / "inside.onnx")
    outside = tmp_path / "models" / "outside.onnx"
    outside.parent.mkdir()
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=100)
    before = files_below(tmp_path)
    plan = random_plan(GEOMETRY, granularity="element")
    results = []
    for path in (tmp_path / "inside.onnx", outside):
        with Probe(path, CONFIG, granularity="element", threads=1) as probe:
            results.append(probe.run(tokens(), plan))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert files_below(tmp_path) == before
    proto = ir.load(outside)
    assert any(isinstance(value.const_value, ir.ExternalTensor) for value in proto.graph.initializers.values())


def test_the_geometry_is_the_models(dense: Path) -> None:
    with Probe(dense, CONFIG, granularity="row") as probe:
        assert probe.geometry == GEOMETRY


REFUSED_PLANS = {
    "granularity": ({"granularity": "element"}, "granularity element in layer 0, and this probe was built for row"),
    "rule": ({"row_rule": ("relative", "absolute")}, "row_rule absolute in layer 1"),
    "v_skip": ({"v_skip": (0.0, 0.25)}, r"v_skip 0\.25 in layer 1"),
    "weights": ({"weighted": (False, True)}, "row weights in layer 1"),
}


@pytest.mark.parametrize("name", REFUSED_PLANS)
def test_a_plan_of_other_rules_is_refused(dense: Path, name: str) -> None:
    kind, sentence = REFUSED_PLANS[name]
    with Probe(dense, CONFIG, granularity="row") as probe, pytest.raises(DeltaLLMError, match=sentence):
        probe.run(tokens(), random_plan(GEOMETRY, **kind))


def test_another_models_plan_is_refused(dense: Path) -> None:
    with (
        Probe(dense, CONFIG, granularity="row") as probe,
        pytest.raises(DeltaLLMError, match="says nothing of attention layer 1"),
    ):
        probe.run(tokens(), random_plan(GEOMETRY[:1]))


def test_wrong_calls_are_refused(dense: Path, tmp_path: Path) -> None:
    plan = AttentionPlan.uniform(CONFIG, GEOMETRY)
    probe = Probe(dense, CONFIG, granularity="row")
    for windows in (tokens()[0], tokens()[:, :0]):
        with pytest.raises(DeltaLLMError, match="The windows have the shape"):
            probe.run(windows, plan)
    with pytest.raises(DeltaLLMError, match=r"ONNX Runtime stopped in .* with 1 windows of 3 tokens"):
        probe.run(np.full((1, 3), VOCABULARY), plan)
    probe.close()
    with pytest.raises(DeltaLLMError, match="is closed"):
        probe.run(tokens(), plan)
    with pytest.raises(DeltaLLMError, match="granularity has 3 entries for 2 layers"):
        Probe(dense, CONFIG, granularity=("row",) * 3)
    with pytest.raises(DeltaLLMError, match="threads is 0"):
        Probe(dense, CONFIG, granularity="row", threads=0)
    rewrite(dense, tmp_path / "delta.onnx", CONFIG)
    with pytest.raises(DeltaLLMError, match="already rewritten"):
        Probe(tmp_path / "delta.onnx", CONFIG, granularity="row")
