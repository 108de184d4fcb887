"""The bundled model with packed caches: how far its predictions move on held-out text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.evaluation import compare, text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime import DecoderModel, TextTokenizer, generate

DEMO = Path(__file__).parents[2] / "models" / "demo"
#: At θ = 0 only rounding is left. Mean KL divergence from the dense model in nats, on text of perplexity 60: measured
#: 2.5e-5 and, with one sealed block in windows of 201 tokens, 8e-5.
ROUNDING = {"int8": 1e-4, "int4": 3e-4}
BASE = DeltaConfig(threshold=0.0, window=32, sinks=4, prefill="delta")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    return DecoderModel(export_model(DEMO, tmp_path_factory.mktemp("demo") / "dense.onnx").path)


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    text = (DEMO / "validation.txt").read_text(encoding="utf-8")
    return text_windows(TextTokenizer(DEMO).encode(text[:60000]), 201, 3)


def packed(dense: DecoderModel, config: DeltaConfig) -> DecoderModel:
    out = dense.path.with_name(f"{config.cache_format}.{config.threshold}.{config.prefill}.onnx")
    return DecoderModel(rewrite(dense.path, out, config).path)


@pytest.mark.parametrize("cache_format", ROUNDING)
def test_rounding_alone_moves_predictions_little(dense: DecoderModel, windows: np.ndarray, cache_format: str) -> None:
    reference, score = compare(dense, packed(dense, BASE.replace(cache_format=cache_format)), windows)
    assert 0 < score.kl_to_reference < ROUNDING[cache_format]
    assert score.perplexity == pytest.approx(reference.perplexity, rel=3e-3)


@pytest.mark.parametrize("cache_format", ROUNDING)
def test_with_held_rows_it_is_as_near_as_the_float_cache(
    dense: DecoderModel, windows: np.ndarray, cache_format: str
) -> None:
    config = BASE.replace(threshold=0.8)
    _, float16 = compare(dense, packed(dense, config.replace(cache_format="float16")), windows)
    _, score = compare(dense, packed(dense, config.replace(cache_format=cache_format)), windows)
    assert float16.kl_to_reference > 2 * ROUNDING["int8"], "the threshold was to change something"
    assert abs(score.kl_to_reference - float16.kl_to_reference) < 0.1 * float16.kl_to_reference + ROUNDING[cache_format]
    assert score.counters is not None
    assert float16.counters is not None
    # Runs take one row of the packed cache.
    assert score.counters.delta_sparsity == pytest.approx(float16.counters.delta_sparsity, abs=0.02)
    assert score.counters.kv_bytes < 0.56 * float16.counters.kv_bytes


def test_200_tokens_follow_the_dense_model(dense: DecoderModel) -> None:
    """Greedy text of an int8 cache at θ = 0 is the dense model's for as long as no two tokens are nearly equal."""
    prompt = TextTokenizer(DEMO).encode("The door of the old house stood open, and")
    model = packed(dense, BASE.replace(cache_format="int8", prefill="exact"))
    found, expected = (list(generate(m, prompt, max_new_tokens=200).tokens) for m in (model, dense))
    same = next((i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b), 200)
    assert same >= 100, f"the texts part after {same} tokens"
