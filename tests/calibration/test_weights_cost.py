"""What stored weights cost, against logits that ONNX Runtime makes of both models in one call per window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from support.quantised_models import save_quantised
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.calibration.weights_cost import WeightsCost, measure_weights

WINDOWS = np.random.default_rng(8).integers(0, VOCABULARY, (3, 41))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("model"))


def log_p(path: Path, window: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": window[None], "position_ids": np.arange(len(window))[None]}
    feeds["attention_mask"] = np.ones((1, len(window)), np.int64)
    for layer in range(LAYERS):
        for side in ("key", "value"):
            feeds[f"past_key_values.{layer}.{side}"] = np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32)
    known = {entry.name for entry in session.get_inputs()}
    logits = session.run(["logits"], {name: value for name, value in feeds.items() if name in known})[0]
    shifted = logits[0, :-1].astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def test_the_numbers_are_those_of_both_models_logits(dense: Path, tmp_path: Path) -> None:
    stored = tmp_path / "small.onnx"
    save_quantised(dense, stored, "int4")
    read: list[None] = []
    cost = measure_weights(
        dense, stored, WINDOWS, name="int4", folder=tmp_path, seed=3, on_read=lambda: read.append(None)
    )
    kl, loss, before = [], [], []
    for window in WINDOWS:
        p, q = log_p(dense, window), log_p(stored, window)
        kl.append((np.exp(p) * (p - q)).sum(axis=1).mean())
        loss.append(-q[np.arange(len(q)), window[1:]].mean())
        before.append(-p[np.arange(len(p)), window[1:]].mean())
    found = cost.to_dict()
    assert min(kl) > 1e-4
    np.testing.assert_allclose(cost.divergence, kl, rtol=1e-3)  # float32 log-probabilities, off by 1e-7
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-3)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(loss)), rel=1e-5)
    assert found["baseline_perplexity"] == pytest.approx(np.exp(np.mean(before)), rel=1e-5)
    assert found["perplexity_increase"] == pytest.approx(np.exp(np.mean(loss) - np.mean(before)) - 1, rel=1e-3)
    assert found["kl_interval"][0] <= found["kl"] <= found["kl_interval"][1]
    assert (found["name"], found["windows"], found["tokens"], len(read)) == ("int4", 3, 123, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx", "small.onnx.data"]


def test_the_same_weights_cost_nothing(dense: Path, tmp_path: Path) -> None:
    found = measure_weights(dense, dense, WINDOWS, name="float16", folder=tmp_path, seed=0).to_dict()
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["perplexity_increase"] == pytest.approx(0, abs=1e-6)


def test_one_window_has_no_interval() -> None:
    cost = WeightsCost("int4", np.array([0.25]), np.array([2.5]), np.array([2.0]), 7, 0.5, 0.25, 0)
    assert cost.to_dict()["kl_interval"] is None
    assert cost.line == (
        "int4 weights alone, against the weights as they were: kl 0.2500, perplexity 7.389 → 12.182, +64.87%; the "
        "budget is kept on top of that"
    )


def test_the_line_has_the_intervals() -> None:
    cost = WeightsCost("int8", np.array([0.2, 0.4]), np.array([2.5, 2.7]), np.array([2.0, 2.5]), 7, 0.5, 0.25, 0)
    kl, ppl = (cost.to_dict()[name] for name in ("kl_interval", "perplexity_increase_interval"))
    assert kl[0] == 0, "a divergence is not negative"
    assert (
        f"kl 0.3000 [0.0000, {kl[1]:.4f}], perplexity 9.488 → 13.464, +41.91% [{ppl[0]:+.2%}, {ppl[1]:+.2%}]; the"
        in cost.line
    )
