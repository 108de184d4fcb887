"""Likelihoods and greedy text in token ids, against log-softmax written out here and the generation loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import LAYERS, VOCABULARY

from deltallm_onnx import DeltaConfig, DeltaLLMError, rewrite
from deltallm_onnx.evaluation import delta_form, text_windows
from deltallm_onnx.runtime import DecoderModel, generate
from deltallm_onnx.tasks.modes import open_token_model
from deltallm_onnx.tasks.token_model import TokenModel

#: float32 logits of two layers, computed in two orders, summed over at most 30 predictions.
TOLERANCE = 1e-4
RANDOM = np.random.default_rng(20260711)
CONTEXT = RANDOM.integers(0, VOCABULARY, 37).tolist()
#: Continuations of different lengths; the first is one token, which needs no call of its own.
CONTINUATIONS = [RANDOM.integers(0, VOCABULARY, n).tolist() for n in (1, 19, 7)]
CONFIGS = {
    "float32": DeltaConfig(threshold=1.2, window=5, sinks=2, granularity="element", cache_format="float32"),
    "int8": DeltaConfig(threshold=0.9, window=7, sinks=3, cache_format="int8"),
}


def log_probability(logits: np.ndarray, targets: Sequence[int]) -> tuple[float, bool]:
    """Sum of log-softmax at the targets, and whether each is the largest; logits [len(targets), V]."""
    total, greedy = 0.0, True
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        total += row[target] - np.log(np.sum(np.exp(row)))
        greedy &= bool(np.argmax(row) == target)
    return total, greedy


@pytest.fixture(params=sorted(CONFIGS))
def delta_path(request: pytest.FixtureRequest, dense_path: Path, tmp_path: Path) -> Path:
    return rewrite(dense_path, tmp_path / "delta.onnx", CONFIGS[request.param]).path


def opened(path: Path, mode: str, dense_path: Path) -> TokenModel:
    return open_token_model(path, dense_path.parent, mode)


def test_a_dense_model_scores_what_one_call_says(dense_path: Path) -> None:
    model = DecoderModel(dense_path)
    scorer = opened(dense_path, "prefill+decode", dense_path)
    for continuation in CONTINUATIONS:
        logits, _ = model.step(np.array([CONTEXT + continuation]), model.new_cache())
        expected, _ = log_probability(logits[0, len(CONTEXT) - 1 : -1], continuation)
        assert scorer.score(CONTEXT, continuation)[0] == pytest.approx(expected, abs=TOLERANCE)
    assert scorer.counters is None
    assert scorer.tokens == sum(len(CONTEXT) + len(c) - 1 for c in CONTINUATIONS)


def test_what_greedy_decoding_says_is_greedy(dense_path: Path) -> None:
    scorer = opened(dense_path, "prefill", dense_path)
    said = generate(DecoderModel(dense_path), CONTEXT, max_new_tokens=9).tokens
    assert scorer.score(CONTEXT, said)[1]
    said[4] = (said[4] + 1) % VOCABULARY
    assert not scorer.score(CONTEXT, said)[1]


@pytest.mark.parametrize("mode", ["prefill", "prefill+decode", "decode"])
def test_modes_make_the_calls_they_name(dense_path: Path, delta_path: Path, mode: str) -> None:
    """By hand: which form reads the prompt, and what comes token by token behind it."""
    scorer = opened(delta_path, mode, dense_path)
    reading = DecoderModel(delta_path) if mode == "decode" else delta_form(delta_path)
    dense = DecoderModel(dense_path)
    for continuation in CONTINUATIONS:
        cache = reading.new_cache()
        if mode == "prefill":
            rows = reading.step(np.array([CONTEXT + continuation[:-1]]), cache)[0][0, len(CONTEXT) - 1 :]
        else:
            parts = [CONTEXT, *([token] for token in continuation[:-1])]
            rows = np.concatenate([reading.step(np.array([part]), cache)[0][0, -1:] for part in parts])
        found = scorer.score(CONTEXT, continuation)
        expected = log_probability(rows, continuation)
        assert found[0] == pytest.approx(expected[0], abs=TOLERANCE)
        assert found[1] == expected[1]
        exactly, _ = dense.step(np.array([CONTEXT + continuation]), dense.new_cache())
        far = abs(found[0] - log_probability(exactly[0, len(CONTEXT) - 1 : -1], continuation)[0])
        # Behind an exact prompt a single token is read exactly too.
        assert far > 10 * TOLERANCE or (mode == "decode" and len(continuation) == 1)


def test_one_call_and_steps_agree(dense_path: Path, delta_path: Path) -> None:
    """The chunk property of docs/spec.md, section 3, through the harness's eyes."""
    at_once, stepwise = (opened(delta_path, mode, dense_path) for mode in ("prefill", "prefill+decode"))
    for continuation in CONTINUATIONS:
        found = at_once.score(CONTEXT, continuation)[0]
        assert found == pytest.approx(stepwise.score(CONTEXT, continuation)[0], abs=TOLERANCE)


def test_a_context_is_read_once_for_all_its_continuations(dense_path: Path, delta_path: Path) -> None:
    scorer = opened(delta_path, "prefill+decode", dense_path)
    first = [scorer.score(CONTEXT, continuation) for continuation in CONTINUATIONS]
    assert scorer.tokens == len(CONTEXT) + sum(len(c) - 1 for c in CONTINUATIONS)
    assert scorer.counters is not None
    assert scorer.counters.layers == LAYERS
    assert scorer.counters.decoded_tokens == sum(len(c) - 1 for c in CONTINUATIONS)
    assert scorer.counters.delta_zero > 0
    # The kept context is as it was, whatever was said behind it, …
    assert [scorer.score(CONTEXT, continuation) for continuation in CONTINUATIONS] == first
    # … and another context of the same length is not taken for it.
    other = [*CONTEXT[:-1], (CONTEXT[-1] + 1) % VOCABULARY]
    assert scorer.score(other, CONTINUATIONS[1])[0] != first[1][0]
    scorer.reset()
    assert (scorer.tokens, scorer.seconds, scorer.counters) == (0, 0.0, None)


@pytest.mark.parametrize("mode", ["prefill", "prefill+decode"])
def test_what_is_too_long_loses_its_first_tokens(dense_path: Path, delta_path: Path, mode: str) -> None:
    short = opened(delta_path, mode, dense_path)
    whole = opened(delta_path, mode, dense_path)
    short.max_length = 30
    continuation = CONTINUATIONS[1]
    # The last token is never read, so one more fits.
    kept = CONTEXT[len(CONTEXT) - (31 - len(continuation)) :]
    assert short.score(CONTEXT, continuation)[0] == pytest.approx(whole.score(kept, continuation)[0], abs=1e-6)
    assert short.score(CONTEXT, continuation)[0] != pytest.approx(whole.score(CONTEXT, continuation)[0], abs=1e-3)
    short.max_length = len(continuation) - 1
    with pytest.raises(DeltaLLMError, match=r"has 19 tokens, the model was made for 18"):
        short.score(CONTEXT, continuation)


def test_text_is_that_of_the_generation_loop(dense_path: Path, delta_path: Path) -> None:
    model = opened(delta_path, "prefill+decode", dense_path)
    whole = generate(delta_form(delta_path), CONTEXT, max_new_tokens=24)
    assert model.generate(CONTEXT, max_new_tokens=24) == whole.tokens
    assert model.counters == whole.counters
    stopped = model.generate(CONTEXT, max_new_tokens=24, until=lambda tokens: len(tokens) == 5)
    assert stopped == whole.tokens[:5]
    end = whole.tokens[7]
    ended = model.generate(CONTEXT, max_new_tokens=24, end_ids={end})
    assert ended == whole.tokens[: whole.tokens.index(end) + 1]


def test_a_long_prompt_leaves_room_for_what_is_said(dense_path: Path) -> None:
    model = opened(dense_path, "prefill+decode", dense_path)
    model.max_length = 31
    expected = generate(DecoderModel(dense_path), CONTEXT[-20:], max_new_tokens=11).tokens
    assert model.generate(CONTEXT, max_new_tokens=11) == expected
    with pytest.raises(DeltaLLMError, match=r"up to 31 new tokens, the model was made for 31 in all"):
        model.generate(CONTEXT, max_new_tokens=31)


def test_refusals(dense_path: Path, delta_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match=r"mode is 'both': choose one of prefill\+decode, prefill, decode\."):
        opened(delta_path, "both", dense_path)
    prefill = opened(delta_path, "prefill", dense_path)
    with pytest.raises(DeltaLLMError, match=r"token by token, which is decoding"):
        prefill.generate(CONTEXT, max_new_tokens=3)
    for context, continuation in (([], [1]), ([1], [])):
        with pytest.raises(DeltaLLMError, match=r"at least one token each"):
            prefill.score(context, continuation)


def test_windows_of_a_text_have_its_perplexity(dense_path: Path) -> None:
    """One token of context and the rest as continuation: what `evaluation` scores of a window."""
    windows = text_windows(RANDOM.integers(0, VOCABULARY, 90).tolist(), 29, 3)
    scorer = opened(dense_path, "prefill", dense_path)
    dense = DecoderModel(dense_path)
    for window in windows:
        logits, _ = dense.step(window[None], dense.new_cache())
        expected, _ = log_probability(logits[0, :-1], window[1:].tolist())
        assert scorer.score(window[:1].tolist(), window[1:].tolist())[0] == pytest.approx(expected, abs=TOLERANCE)


def test_what_no_score_can_be_made_of_is_refused(dense_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the model does not know, and logits that have gone wrong: the first choice would look best."""
    scorer = opened(dense_path, "prefill", dense_path)
    with pytest.raises(DeltaLLMError, match=rf"has the token {VOCABULARY}, and .*tiny\.onnx knows those below"):
        scorer.score([1, 2], [3, VOCABULARY])
    monkeypatch.setattr(DecoderModel, "step", lambda *_: (np.full((1, 3, VOCABULARY), np.nan, np.float32), []))
    with pytest.raises(DeltaLLMError, match=r"tiny\.onnx gives NaN for 2 of 2 predictions"):
        scorer.score([1, 2], [3, 4])
