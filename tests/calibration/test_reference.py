"""The fast float32 scores against those of the evaluation, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration import reference as module
from deltallm_onnx.calibration.reference import Reference
from deltallm_onnx.evaluation import score
from deltallm_onnx.runtime import DecoderModel

N, S = 3, 41


@pytest.fixture
def model(tmp_path: Path) -> DecoderModel:
    return DecoderModel(save_tiny_decoder(tmp_path / "model"), threads=1)


@pytest.fixture
def filled(model: DecoderModel, tmp_path: Path) -> Reference:
    windows = np.random.default_rng(6).integers(0, VOCABULARY, (N, S))
    read: list[int] = []
    found = Reference(windows, tmp_path)
    found.fill(model, lambda: read.append(1))
    assert len(read) == N
    return found


@pytest.mark.parametrize("slice_bytes", [1, 1000, 1 << 20])
def test_scores_are_those_of_the_evaluation(
    model: DecoderModel, filled: Reference, slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLICE_BYTES", slice_bytes)
    random = np.random.default_rng(7)
    for number, window in enumerate(filled.windows):
        logits = model.step(window[None], model.new_cache(limit=S))[0][0]
        for noise in (0.0, 0.003, 0.5):
            other = logits + random.normal(0, noise, logits.shape).astype(np.float32)
            expected = score(other[:-1], window[1:], logits[:-1])
            divergence, loss = filled.score(number, other)
            # Differences of log-probabilities of up to about 30 in float32.
            assert divergence == pytest.approx(expected.kl.mean(), rel=1e-4, abs=1e-6)
            assert loss == pytest.approx(expected.loss.mean(), rel=1e-6)


def test_the_dense_model_scores_itself(model: DecoderModel, filled: Reference) -> None:
    geometry = [LayerGeometry(layer, 6, KV_HEADS, HEAD_SIZE) for layer in range(LAYERS)]
    dense = filled.dense(geometry)
    logits = model.step(filled.windows[:1], model.new_cache(limit=S))[0][0, :-1]
    assert dense.loss[0] == pytest.approx(score(logits, filled.windows[0, 1:]).loss.mean(), rel=1e-6)
    assert dense.kl == 0
    assert dense.counters.kv_bytes_per_token == 2 * 4 * KV_HEADS * HEAD_SIZE
    assert dense.seconds > 0


def test_nothing_is_left_in_the_folder(filled: Reference, tmp_path: Path) -> None:
    assert filled.windows.shape == (N, S)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
