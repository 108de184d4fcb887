"""Ours in the oracle form is what the rewritten model computes, keeps and reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.baselines.delta import DeltaRows
from bench.baselines.measure import Text, measure
from bench.baselines.model import TorchModel, query_rms
from bench.baselines.operator import decode
from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan
from deltallm_onnx.evaluation import text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime import DecoderModel, TextTokenizer

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo"
WINDOW, SINKS = 17, 3


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(MODEL, tmp_path_factory.mktemp("demo") / "dense.onnx").path


@pytest.mark.parametrize(("cache_format", "theta"), [("int8", 6.0), ("int4", 2.5)])
def test_the_oracle_is_the_rewritten_model(cache_format: str, theta: float, dense: Path) -> None:
    """Keys that differ in the last bits of float32 may be rounded, and so held, otherwise: a few in a thousand."""
    ids = TextTokenizer(MODEL).encode((MODEL / "validation.txt").read_text(encoding="utf-8")[:20000])
    windows = text_windows(ids, 211, 2)
    model = TorchModel(MODEL)
    weights = query_rms(model, windows)
    # The thresholds of two heads, and of all layers, differ.
    plan = AttentionPlan(
        tuple(
            LayerPlan(layer, theta * np.array([1 + layer / 4, 0.8], np.float32), weight, "row", "absolute")
            for layer, weight in enumerate(weights)
        )
    )
    config = DeltaConfig(window=WINDOW, sinks=SINKS, cache_format=cache_format)
    written = rewrite(dense, dense.with_name(f"{cache_format}.onnx"), config, plan=plan, statistics=True)
    text = Text(model, windows)
    ours = list(model.read(windows, DeltaRows(plan, WINDOW, SINKS, cache_format)))
    real = list(decode(DecoderModel(written.path, threads=1), windows))
    for name in ("kept", "read"):
        found, expected = (np.concatenate([getattr(reading, name) for reading in all_]) for all_ in (ours, real))
        np.testing.assert_allclose(found, expected, rtol=0.01)
    found, expected = (measure(readings, text, model.layers) for readings in (ours, real))
    assert expected["kl"] > 1e-4
    assert found["kl"] == pytest.approx(expected["kl"], rel=0.03)
    assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-3)
    rows = 2 * 2 * (WINDOW + SINKS) * 68
    assert expected["kv_bytes_per_token"] * 211 > rows
    assert expected["kv_bytes_per_token"] < 0.8 * 2 * 2 * 68
    print({name: (found[name], expected[name]) for name in found})
