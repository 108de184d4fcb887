"""The forms of a file against the file itself, read token by token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from support.evaluation_models import ELEMENT, ROW, TOLERANCE, Rewritten
from support.tiny_decoder import LAYERS, save_tiny_decoder

from deltallm_onnx.convert import rewrite
from deltallm_onnx.evaluation import delta_form
from deltallm_onnx.evaluation.forms import add_statistics, prompt_settings, read_prompts_exactly
from deltallm_onnx.runtime import DecoderModel

CONFIGS = {
    f"{cache} {settings.granularity}": settings.replace(cache_format=cache)
    for cache in ("float32", "float16", "int8", "int4")
    for settings in (ROW, ELEMENT)
}
#: Columns of the raw counts that describe what was done; the others describe the cache at the end of a call.
DONE = slice(0, 6)
KV_BYTES = 6


@pytest.fixture(scope="module")
def long_window() -> np.ndarray:
    """Token ids [1, 229]: enough for a sealed block of an int4 cache."""
    return np.random.default_rng(47).integers(0, 29, (1, 229))


def token_by_token(model: DecoderModel, window: np.ndarray) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Logits [1, S, V], and the statistics of every layer by step."""
    cache = model.new_cache()
    steps = [model.step(window[:, i : i + 1], cache) for i in range(window.shape[1])]
    return np.concatenate([logits for logits, _ in steps], axis=1), [counts for _, counts in steps]


@pytest.mark.parametrize("name", CONFIGS)
def test_one_call_is_token_by_token_decoding(rewritten: Rewritten, long_window: np.ndarray, name: str) -> None:
    """Outputs and counts, for a file that reads prompts exactly."""
    path = rewritten(CONFIGS[name])
    form = delta_form(path)
    at_once, counts = form.step(long_window, form.new_cache())
    expected, steps = token_by_token(DecoderModel(path), long_window)
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=TOLERANCE)
    for layer in range(LAYERS):
        done = np.sum([step[layer][:, DONE] for step in steps], axis=0)
        np.testing.assert_array_equal(counts[layer][:, DONE], done)
        np.testing.assert_array_equal(counts[layer][:, KV_BYTES], steps[-1][layer][:, KV_BYTES])
    assert 0.1 < sum(c[:, 1].sum() for c in counts) / sum(c[:, 0].sum() for c in counts) < 0.95
    exact, _ = DecoderModel(path).step(long_window, DecoderModel(path).new_cache())
    assert np.abs(exact - at_once).max() > 0.1, "the file itself was to read this window otherwise"


@pytest.mark.parametrize("name", ["float32 row", "int8 row"])
def test_counts_are_added_where_the_file_has_none(rewritten: Rewritten, windows: np.ndarray, name: str) -> None:
    config = CONFIGS[name].replace(prefill="delta")
    silent, counting = rewritten(config, statistics=False), rewritten(config)
    assert not DecoderModel(silent).signature.statistics
    expected = DecoderModel(counting)
    logits, counts = expected.step(windows[:1], expected.new_cache())
    for form in (DecoderModel(silent, edit=add_statistics), delta_form(silent), delta_form(counting)):
        assert form.signature.statistics == tuple(f"statistics.{layer}" for layer in range(LAYERS))
        found, found_counts = form.step(windows[:1], form.new_cache())
        np.testing.assert_array_equal(found, logits)
        np.testing.assert_array_equal(found_counts, counts)


def test_prompts_may_be_read_exactly(rewritten: Rewritten, windows: np.ndarray) -> None:
    config = CONFIGS["float32 row"]
    found, expected = (
        DecoderModel(rewritten(config.replace(prefill=prefill)), edit=edit)
        for prefill, edit in (("delta", read_prompts_exactly), ("exact", None))
    )
    logits, counts = found.step(windows[:1], found.new_cache())
    same, same_counts = expected.step(windows[:1], expected.new_cache())
    np.testing.assert_array_equal(logits, same)
    np.testing.assert_array_equal(counts, same_counts)


def test_low_precision_of_prompts_is_not_decoding(rewritten: Rewritten, windows: np.ndarray) -> None:
    config = CONFIGS["float32 row"]
    low = delta_form(rewritten(config.replace(prefill_compute="int8")))
    full = delta_form(rewritten(config))
    np.testing.assert_array_equal(
        low.step(windows[:1], low.new_cache())[0], full.step(windows[:1], full.new_cache())[0]
    )


def test_weights_stay_in_their_file(dense_path: Path, tmp_path: Path, windows: np.ndarray) -> None:
    """The edited graph finds them, whatever the working directory is, and neither file changes."""
    onnx.save(
        onnx.load(dense_path), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=1024
    )
    path = rewrite(tmp_path / "m.onnx", tmp_path / "delta.onnx", CONFIGS["int8 row"]).path
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert any(file.name == "delta.onnx.data" for file in before)
    form = delta_form(path)
    logits, _ = form.step(windows[:1], form.new_cache())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    inside = delta_form(rewrite(dense_path, tmp_path / "inside.onnx", CONFIGS["int8 row"]).path)
    np.testing.assert_array_equal(logits, inside.step(windows[:1], inside.new_cache())[0])


def test_an_unfused_model_decodes_but_does_not_count(rewritten: Rewritten, windows: np.ndarray) -> None:
    """Its counts are standard operators, written for the prefill setting of the file."""
    config = CONFIGS["float32 row"]
    unfused, fused = (delta_form(rewritten(config, unfused=value)) for value in (True, False))
    found, counts = unfused.step(windows[:1], unfused.new_cache())
    np.testing.assert_allclose(found, fused.step(windows[:1], fused.new_cache())[0], rtol=0, atol=TOLERANCE)
    assert counts == []
    counting = delta_form(rewritten(config.replace(prefill="delta"), unfused=True))
    counts = counting.step(windows[:1], counting.new_cache())[1]
    np.testing.assert_array_equal(counts, fused.step(windows[:1], fused.new_cache())[1])


def test_models_of_onnxruntime_genai(tmp_path: Path, windows: np.ndarray) -> None:
    """GroupQueryAttention tells its lengths by other inputs, and its folders are written without counts."""
    dense = save_tiny_decoder(tmp_path, grouped_query=True)
    path = rewrite(dense, tmp_path / "delta.onnx", CONFIGS["int4 row"], statistics=False).path
    form = delta_form(path)
    at_once, counts = form.step(windows[:1], form.new_cache())
    expected, _ = token_by_token(DecoderModel(path), windows[:1])
    np.testing.assert_allclose(at_once, expected, rtol=0, atol=TOLERANCE)
    assert len(counts) == LAYERS
    assert all(layer[:, 0].min() == windows.shape[1] - ROW.window - ROW.sinks for layer in counts)


def test_a_dense_model_is_opened_as_it_is(dense_path: Path, windows: np.ndarray) -> None:
    form, dense = delta_form(dense_path), DecoderModel(dense_path)
    np.testing.assert_array_equal(
        form.step(windows[:1], form.new_cache())[0], dense.step(windows[:1], dense.new_cache())[0]
    )
    assert form.signature == dense.signature


def test_what_a_file_says_of_prompts(rewritten: Rewritten, dense_path: Path) -> None:
    path = rewritten(CONFIGS["float32 row"].replace(prefill_compute="bfloat16"))
    assert prompt_settings(onnx.load(path)) == {("exact", "bfloat16")}
    assert prompt_settings(onnx.load(dense_path)) == set()
