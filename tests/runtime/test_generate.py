from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, POSITIONS

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, Sampler, generate

PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]


def test_greedy_follows_the_argmax_of_whole_prefills(dense_path: Path) -> None:
    """The oracle re-reads the whole text for every token and keeps no cache."""
    model = DecoderModel(dense_path)
    text = list(PROMPT)
    for _ in range(20):
        logits, _ = model.step(np.array([text]), model.new_cache())
        text.append(int(logits[0, -1].argmax()))
    assert len(set(text[len(PROMPT) :])) > 5, "a model that repeats itself proves nothing"
    assert generate(model, PROMPT, max_new_tokens=20).tokens == text[len(PROMPT) :]


def test_in_place_and_fed_back_models_say_the_same(dense_path: Path, in_place_path: Path) -> None:
    results = [generate(DecoderModel(path), PROMPT, max_new_tokens=70).tokens for path in (dense_path, in_place_path)]
    assert results[0] == results[1]


def test_a_seed_makes_sampling_repeatable(in_place_path: Path) -> None:
    model = DecoderModel(in_place_path)
    drawn = [generate(model, PROMPT, max_new_tokens=30, sampler=Sampler(2.0, seed=seed)).tokens for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_end_token_stops_and_is_kept(dense_path: Path) -> None:
    model = DecoderModel(dense_path)
    whole = generate(model, PROMPT, max_new_tokens=12)
    assert whole.stop == "length"
    end = whole.tokens[4]
    first = whole.tokens.index(end)
    cut = generate(model, PROMPT, max_new_tokens=12, end_ids={end})
    assert cut.tokens == whole.tokens[: first + 1]
    assert cut.stop == "eos"


def test_a_condition_on_all_new_tokens_stops(dense_path: Path) -> None:
    model = DecoderModel(dense_path)
    whole = generate(model, PROMPT, max_new_tokens=12)
    seen: list[list[int]] = []

    def stopped(tokens: Sequence[int]) -> bool:
        seen.append(list(tokens))
        return len(tokens) == 5

    cut = generate(model, PROMPT, max_new_tokens=12, until=stopped)
    assert cut.tokens == whole.tokens[:5]
    assert cut.stop == "until"
    assert seen == [whole.tokens[:count] for count in range(1, 6)]
    assert generate(model, PROMPT, max_new_tokens=5, until=stopped).stop == "length"


def test_every_token_is_announced_in_order(dense_path: Path) -> None:
    seen: list[int] = []
    result = generate(DecoderModel(dense_path), PROMPT, max_new_tokens=9, on_token=seen.append)
    assert seen == result.tokens
    assert len(seen) == 9


def test_sizes_and_speeds_describe_the_run(in_place_path: Path) -> None:
    result = generate(DecoderModel(in_place_path), PROMPT, max_new_tokens=6)
    rows = len(PROMPT) + 5  # the sixth token was chosen, never run
    assert result.cached_tokens == rows
    assert result.cache_bytes_in_use == result.cache_bytes_allocated == rows * LAYERS * 2 * KV_HEADS * HEAD_SIZE * 4
    assert result.prefill_tokens_per_second == pytest.approx(len(PROMPT) / result.prefill_seconds)
    assert result.decode_tokens_per_second == pytest.approx(5 / result.decode_seconds)
    assert result.counters is None, "a dense model has no statistics"


def test_one_new_token_has_no_decode_speed(dense_path: Path) -> None:
    assert generate(DecoderModel(dense_path), PROMPT, max_new_tokens=1).decode_tokens_per_second is None


@pytest.mark.parametrize(("prompt", "count", "sentence"), [([], 4, "no token"), (PROMPT, 0, "max-new-tokens is 0")])
def test_nothing_to_do_is_refused(dense_path: Path, prompt: list[int], count: int, sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        generate(DecoderModel(dense_path), prompt, max_new_tokens=count)


def test_a_failure_inside_onnxruntime_is_one_sentence(dense_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DeltaLLMError, match=rf"at token {POSITIONS + 1}: .*Gather") as caught:
        generate(DecoderModel(dense_path), PROMPT, max_new_tokens=POSITIONS)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
