"""The whole evaluation: what is measured, what is left out, and what is said about either."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.evaluation_models import ELEMENT, ROW, Rewritten
from support.quantised_models import save_quantised
from support.tiny_decoder import VOCABULARY, tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import compare, delta_form, evaluate, repeated_sequences
from deltallm_onnx.evaluation.reading import Mode
from deltallm_onnx.runtime import DecoderModel

COUNTERS = ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity", "kv_bytes_per_token", "kv_bytes_read")


def with_head(path: Path, *, columns: int = VOCABULARY, value: float | None = None) -> Path:
    """The tiny model with another vocabulary, or with every logit the same."""
    model = tiny_decoder()
    head = next(t for t in model.graph.initializer if t.name == "head")
    weights = np.resize(numpy_helper.to_array(head), (40, columns))
    if value is not None:
        weights = np.full_like(weights, value)
    head.CopyFrom(numpy_helper.from_array(weights, "head"))
    next(v for v in model.graph.output if v.name == "logits").type.tensor_type.shape.dim[2].dim_value = columns
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("config", [ROW.replace(cache_format="int8"), ELEMENT], ids=["int8 row", "float32 element"])
def test_figures_are_those_of_compare(
    rewritten: Rewritten, dense_path: Path, windows: np.ndarray, config: DeltaConfig
) -> None:
    path = rewritten(config)
    found = evaluate(path, dense_path, windows, speed=False)
    reference, scored = compare(DecoderModel(dense_path), delta_form(path), windows)
    assert found.quality.predictions == scored.tokens
    assert found.quality.perplexity == pytest.approx(scored.perplexity, rel=1e-5)
    assert found.quality.baseline_perplexity == pytest.approx(reference.perplexity, rel=1e-5)
    assert found.quality.kl == pytest.approx(scored.kl_to_reference, rel=1e-3)
    assert found.cache.raw is not None
    assert scored.counters is not None
    assert found.cache.raw.delta_total == scored.counters.delta_total
    assert found.cache.delta_sparsity == scored.counters.delta_sparsity
    data = found.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert all(data[name] > 0 for name in COUNTERS)
    assert data["tokens_per_second"] is data["speed"] is None
    assert [bucket["begin"] for bucket in data["positions"]] == [1, 64]
    assert data["measured"].startswith("288 predictions in 3 windows of 97 tokens, every token read as a decode step")


def test_threshold_zero_costs_nothing(rewritten: Rewritten, dense_path: Path, windows: np.ndarray) -> None:
    samples = repeated_sequences(windows, begin=0, samples=2, depths=(0.3,))
    found = evaluate(rewritten(ROW.replace(threshold=0.0)), dense_path, windows, samples=samples, speed=False)
    quality = found.quality
    assert quality.kl == pytest.approx(0, abs=1e-8)
    assert quality.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert quality.top1_agreement == 1
    assert quality.top1_accuracy == quality.baseline_top1_accuracy
    assert found.cache.delta_sparsity == 0
    for score in found.retrieval:
        assert score.baseline is not None
        assert score.model.log_prob == pytest.approx(score.baseline.log_prob, abs=1e-4)


@pytest.mark.parametrize("mode", ["prefill+decode", "prefill", "decode"])
def test_bytes_and_counters_of_every_mode(rewritten: Rewritten, windows: np.ndarray, mode: Mode) -> None:
    """The cache is the same whatever read it; what was skipped is not."""
    config = ROW.replace(cache_format="int8")
    found = evaluate(rewritten(config), None, windows, mode=mode, speed=False)
    cache, S = found.cache, windows.shape[1]
    coded = S - config.window - config.sinks - (mode == "prefill")
    assert cache.raw is not None
    assert cache.raw.delta_total == len(windows) * coded * 2 * 3
    assert cache.kv_bytes_read is not None
    assert cache.kv_bytes_read == pytest.approx(cache.kv_bytes_per_token * S * 2), (
        "a decode step reads all that is in use"
    )
    assert cache.kv_bytes_allocated_per_token > cache.kv_bytes_per_token
    assert found.prompt_tokens == (S // 2 if mode == "decode" else 0)
    assert found.positions[0].begin == found.prompt_tokens + 1
    skipped = cache.qk_mac_sparsity
    everything = evaluate(rewritten(config), None, windows, speed=False).cache.qk_mac_sparsity
    assert skipped is not None
    assert everything is not None
    assert 0 < skipped <= everything
    assert (skipped < everything) == (mode != "prefill+decode")


def test_without_a_baseline_nothing_is_claimed(rewritten: Rewritten, windows: np.ndarray) -> None:
    found = evaluate(rewritten(ROW), None, windows, speed=False)
    data = found.to_dict()
    for name in ("baseline", "baseline_perplexity", "kl", "top1_agreement", "perplexity_ratio"):
        assert data[name] is None
    assert data["perplexity"] > 1
    assert found.notes[0] == "No baseline was given: divergence and agreement were not measured."


def test_a_dense_model_counts_nothing(dense_path: Path, windows: np.ndarray) -> None:
    data = evaluate(dense_path, dense_path, windows[:1], speed=False).to_dict()
    assert data["kl"] == 0
    assert data["kv_bytes_per_token"] == data["baseline_kv_bytes_per_token"] == 3 * 8 * 4 * 2
    for name in ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity", "kv_bytes_read", "kl_interval"):
        assert data[name] is None
    assert "is the model itself: nothing was compared" in data["notes"][0]
    assert "is dense: there is nothing to count" in data["notes"][2]
    assert data["notes"][1].startswith("One window says nothing about the spread")


def test_what_a_reader_should_know(rewritten: Rewritten, windows: np.ndarray) -> None:
    def notes(config: DeltaConfig, mode: Mode = "prefill+decode", **options: bool) -> str:
        path = rewritten(config, **options)
        return " ".join(evaluate(path, path, windows, mode=mode, speed=False).notes)

    other = evaluate(rewritten(ROW), rewritten(ELEMENT), windows, speed=False).notes
    assert "is a rewritten model itself" in other[0]
    assert "lie within sinks and exact window" in notes(ROW.replace(window=97))
    assert "reads prompts exactly (prefill exact), as mode decode does" in notes(ROW)
    assert "as mode" not in notes(ROW, "decode")
    assert "reads held keys in prompts too" in notes(ROW.replace(prefill="delta"), "decode")
    assert "an unfused model counts for its own prefill setting only" in notes(ROW, unfused=True)


def test_speed_of_the_files_as_they_are(rewritten: Rewritten, dense_path: Path, windows: np.ndarray) -> None:
    data = evaluate(rewritten(ROW), dense_path, windows[:1], threads=1).to_dict()
    for name in ("speed", "baseline_speed"):
        spread = data[name]["tokens_per_second"]
        assert 0 < spread["lower"] <= spread["median"] <= spread["upper"]
        assert (data[name]["prompt_tokens"], data[name]["steps"]) == (65, 32)
    assert data["tokens_per_second"] == pytest.approx(data["speed"]["tokens_per_second"]["median"], rel=1e-3)
    assert data["threads"] == 1


def test_a_model_that_knows_nothing(tmp_path: Path, windows: np.ndarray) -> None:
    found = evaluate(with_head(tmp_path / "flat.onnx", value=0.0), None, windows, speed=False)
    assert found.quality.perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    low, high = found.quality.perplexity_interval or (0, 0)
    assert low == pytest.approx(VOCABULARY, rel=1e-6)
    assert high == pytest.approx(VOCABULARY, rel=1e-6)


def test_the_same_twice(rewritten: Rewritten, dense_path: Path, windows: np.ndarray) -> None:
    first, again = (
        evaluate(rewritten(ROW), dense_path, windows, threads=1, speed=False, seed=5).to_dict() for _ in range(2)
    )
    for name in ("seconds", "baseline_seconds", "environment"):
        del first[name], again[name]
    assert first == again


def test_another_vocabulary_is_refused(
    rewritten: Rewritten, dense_path: Path, tmp_path: Path, windows: np.ndarray
) -> None:
    other = with_head(tmp_path / "larger.onnx", columns=31)
    with pytest.raises(DeltaLLMError, match=r"29 tokens in its vocabulary and .*larger\.onnx 31: compare a model"):
        evaluate(rewritten(ROW), other, windows, speed=False)
    with pytest.raises(DeltaLLMError, match=r"29 tokens in its vocabulary and .*larger\.onnx 31: compare a model"):
        compare(DecoderModel(other), DecoderModel(dense_path), windows)


def test_a_token_beyond_the_vocabulary_is_refused(rewritten: Rewritten) -> None:
    with pytest.raises(DeltaLLMError, match=r"the token 29, and .* knows those below 29"):
        evaluate(rewritten(ROW), None, np.array([[3, 29, 4]]), speed=False)


def test_nan_is_no_result(tmp_path: Path, windows: np.ndarray) -> None:
    broken = with_head(tmp_path / "broken.onnx", value=math.nan)
    with pytest.raises(DeltaLLMError, match=r"broken\.onnx gives NaN for 96 of 96 predictions"):
        evaluate(broken, None, windows, speed=False)


@pytest.mark.parametrize("shape", [(0, 97), (3, 2)])
def test_too_little_to_score_is_refused(rewritten: Rewritten, shape: tuple[int, int]) -> None:
    with pytest.raises(DeltaLLMError, match="score nothing"):
        evaluate(rewritten(ROW), None, np.zeros(shape, np.int64), speed=False)


def test_short_windows_have_no_speed(rewritten: Rewritten, windows: np.ndarray) -> None:
    with pytest.raises(DeltaLLMError, match="no room for decode steps: use longer ones, or --no-speed"):
        evaluate(rewritten(ROW), None, windows[:, :3])
    assert evaluate(rewritten(ROW), None, windows[:1, :4]).to_dict()["speed"]["steps"] == 1


def test_whose_weights_are_quantised_is_told(dense_path: Path, windows: np.ndarray, tmp_path: Path) -> None:
    """A difference is of all that differs: here of the weights alone, or of nothing."""
    small = tmp_path / "small.onnx"
    save_quantised(dense_path, small, "int4")

    def told(model: Path, baseline: Path | None) -> list[str]:
        notes = evaluate(model, baseline, windows, speed=False).notes
        return [note for note in notes if "quantised weights" in note]

    assert told(dense_path, dense_path) == []
    assert told(small, None) == []
    kinds = "9 MatMulNBits, 1 GatherBlockQuantized"
    both = f"The baseline has quantised weights itself ({kinds}): what quantising them cost is not in the differences."
    assert told(small, small) == [both]
    together = "the differences are those of weights and attention together."
    assert told(small, dense_path) == [f"The model has quantised weights ({kinds}), the baseline has none: {together}"]
    assert told(dense_path, small) == [f"The baseline has quantised weights ({kinds}), the model has none: {together}"]
