"""Two models are run over the same tokens at the same lengths, and the record says what was done."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.tiny_decoder import LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.bench import Measurement, Plan, Spread, bench_models, two_models, usual_pasts
from deltallm_onnx.bench.two_models import WARM_UP_STEPS, cache_mode, read_tokens
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """The same weights with GroupQueryAttention and with the standard Attention."""
    return save_tiny_decoder(tmp_path / "a", grouped_query=True), save_tiny_decoder(tmp_path / "b")


def test_both_models_read_the_same_tokens_at_the_same_lengths(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[tuple[int, list[int]]]] = {}
    step = DecoderModel.step

    def recorded(self: DecoderModel, token_ids: np.ndarray, cache: object) -> object:
        seen.setdefault(str(self.path), []).append((cache.length, token_ids[0].tolist()))
        return step(self, token_ids, cache)

    monkeypatch.setattr(DecoderModel, "step", recorded)
    plan = Plan(pasts=(37,), threads=(1,), steps=5, chunk=20, memory=False)
    bench_models(*models, plan)
    first, second = seen.values()
    assert first == second
    assert all(0 <= token < VOCABULARY for _, tokens in first for token in tokens)
    decoded = [length for length, tokens in first if len(tokens) == 1 and length >= 37]
    assert decoded == list(range(37, 37 + WARM_UP_STEPS + 5))
    assert {(length, len(tokens)) for length, tokens in first if 0 < length < 37} == {(20, 17)}
    # The tokens go on behind the prompt: random ones, not one of them again and again.
    assert len({tokens[0] for length, tokens in first if length >= 37}) > 2


def test_times_and_ratios_belong_to_their_model(models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    step = DecoderModel.step

    def slow(self: DecoderModel, token_ids: np.ndarray, cache: object) -> object:
        seconds[0] += 2.0 if self.path == models[0] else 5.0
        return step(self, token_ids, cache)

    monkeypatch.setattr(DecoderModel, "step", slow)
    monkeypatch.setattr(two_models, "clock", lambda _threads: lambda: seconds[0])
    plan = Plan(pasts=(40,), threads=(1,), steps=4, chunk=15, memory=False)
    ((measured,), _) = bench_models(*models, plan)
    assert [spread.median for spread in measured.decode] == [2.0, 5.0]
    assert [spread.median for spread in measured.prefill] == [6.0, 15.0]  # three calls
    assert measured.decode_ratio == measured.prefill_ratio == Spread(2.5, 2.5, 2.5)


def test_the_record_tells_what_was_run(models: tuple[Path, Path]) -> None:
    said: list[str] = []
    plan = Plan(pasts=(30, 61), threads=(1, 2), steps=3)
    measurements, record = bench_models(*models, plan, progress=said.append)
    assert [(m.threads, m.past_tokens) for m in measurements] == [(1, 30), (1, 61), (2, 30), (2, 61)]
    record = json.loads(json.dumps(record))
    assert record["models"]["model"]["cache_mode"] == "updated in place"
    assert record["models"]["baseline"]["cache_mode"] == "copied each step"
    for facts in record["models"].values():
        assert facts["layers"] == LAYERS
        assert facts["memory_past_tokens"] == 61
        assert facts["peak_resident_bytes"] > facts["kv_bytes_allocated"] >= facts["kv_bytes_in_use"] > 0
    assert {"date", "cpu", "load", "versions"} < record.keys()
    assert [result["clock"] for result in record["results"]] == ["thread CPU time"] * 2 + ["wall time"] * 2
    for result in record["results"]:
        for what, tokens in (("decode", 1), ("prefill", result["past_tokens"])):
            for name in ("model", "baseline"):
                spread = Spread.from_dict(result[what][name]["seconds"])
                assert 0 < spread.lower <= spread.median <= spread.upper
                # Both are rounded to four digits.
                assert result[what][name]["tokens_per_second"] == pytest.approx(tokens / spread.median, rel=2e-3)
            assert result[what]["speedup"]["median"] > 0
    assert any("61 past tokens, 2 threads" in text for text in said)


def test_a_ratio_above_one_means_the_model_is_faster() -> None:
    fast, slow = Spread(0.5, 0.5, 0.5), Spread(2.0, 2.0, 2.0)
    shown = Measurement(7, 1, (fast, slow), Spread(4.0, 4.0, 4.0), (fast, slow), Spread(4.0, 4.0, 4.0), 0.0).to_dict()
    assert shown["decode"]["model"]["tokens_per_second"] == 2.0
    assert shown["prefill"]["baseline"]["tokens_per_second"] == 3.5
    assert shown["decode"]["speedup"]["median"] == 4.0


def test_reading_in_chunks_leaves_the_cache_of_one_call(models: tuple[Path, Path]) -> None:
    model = DecoderModel(models[1])
    tokens = np.random.default_rng(5).integers(0, VOCABULARY, (1, 41))
    caches = []
    for chunk in (0, 13):
        cache = model.new_cache()
        read_tokens(model, cache, tokens, chunk)
        caches.append(cache)
    assert caches[0].length == caches[1].length == 41
    name = f"past_key_values.{LAYERS - 1}.value"
    np.testing.assert_allclose(caches[0].rows(name), caches[1].rows(name), rtol=1e-4, atol=1e-4)


def test_cache_modes(models: tuple[Path, Path]) -> None:
    model = DecoderModel(models[0])
    assert cache_mode(model) == "updated in place"
    object.__setattr__(model.signature.caches[1], "in_place", False)
    assert cache_mode(model) == "partly in place"


def test_different_vocabularies_are_refused(models: tuple[Path, Path]) -> None:
    other = onnx.load(models[1])
    (head,) = [t for t in other.graph.initializer if t.name == "head"]
    array = onnx.numpy_helper.to_array(head)
    head.CopyFrom(onnx.numpy_helper.from_array(np.concatenate([array, array[:, :3]], axis=1), "head"))
    del other.graph.output[0].type.tensor_type.shape.dim[:]
    other.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(other, models[1])
    with pytest.raises(DeltaLLMError, match=f"has {VOCABULARY} tokens .* has {VOCABULARY + 3}: compare two forms"):
        bench_models(*models, Plan(pasts=(9,), threads=(1,), memory=False))


def test_a_past_beyond_the_context_is_refused_before_anything_runs(models: tuple[Path, Path]) -> None:
    (models[1].parent / "config.json").write_text(json.dumps({"max_position_embeddings": 100}))
    fits = 100 - WARM_UP_STEPS - 6
    bench_models(*models, Plan(pasts=(fits,), threads=(1,), steps=6, memory=False))
    with pytest.raises(DeltaLLMError, match=f"{fits + 1} past tokens and 6 steps need 101 positions.* allows 100"):
        bench_models(*models, Plan(pasts=(20, fits + 1), threads=(1,), steps=6, memory=False))


def test_usual_pasts_are_those_that_fit_both_models(models: tuple[Path, Path]) -> None:
    assert usual_pasts(models, 32) == (256, 1024, 4096)
    (models[0].parent / "config.json").write_text(json.dumps({"max_position_embeddings": 4096}))
    (models[1].parent / "config.json").write_text(json.dumps({"max_position_embeddings": 1024 + WARM_UP_STEPS + 32}))
    assert usual_pasts(models, 32) == (256, 1024)
    assert usual_pasts(models, 33) == (256,)
    with pytest.raises(DeltaLLMError, match="no room for 256 past tokens and 900 steps"):
        usual_pasts(models, 900)
