"""What has to be retrieved lies where it should, and is scored as it should."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_models import ROW, Rewritten
from support.tiny_decoder import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import Predictions, Reader, Sample, Trial, passkeys, repeated_sequences
from deltallm_onnx.evaluation.retrieval import DEPTHS, DIGITS, NEEDLE, PASSKEY, QUESTION, REPEATED
from deltallm_onnx.evaluation.retrieval_score import RetrievalScore, Retrieved, retrieve, tasks_at_chance
from deltallm_onnx.evaluation.trial import CacheUse, WindowResult
from deltallm_onnx.runtime import TextTokenizer

BEGIN, S = 2, 203
#: Room for the question and a text, a character a token.
LONG = 311
#: Text in ascending order, so that what was put in between is seen; no token occurs twice in a window.
WINDOWS = np.arange(1000, 1000 + 3 * S).reshape(3, S)


def spelling(folder: Path) -> TextTokenizer:
    """One token per character."""
    characters = sorted({chr(c) for c in range(32, 127)} | {"\n", "~"})
    vocabulary = {character: i for i, character in enumerate(characters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="~"))  # noqa: S106  # a token of text, no password
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)


@given(st.integers(40, 400), st.integers(0, 3), st.floats(0, 1), st.integers(0, 99))
def test_a_sequence_stands_at_its_depth_and_at_the_end(tokens: int, begin: int, depth: float, seed: int) -> None:
    windows = np.arange(2 * tokens).reshape(2, tokens) + 7
    found = repeated_sequences(windows, begin=begin, samples=3, depths=(depth,), seed=seed)
    assert [sample.depth for sample in found] == [depth] * 3 + [None] * 3
    for number, sample in enumerate(found[:3]):
        length = tokens - sample.first + 1
        sequence = sample.tokens[-length:]
        room = tokens - begin - 2 * length
        at = begin + round(depth * room)
        np.testing.assert_array_equal(sample.tokens[at : at + length], sequence)
        around = np.concatenate([sample.tokens[:at], sample.tokens[at + length : -length]])
        np.testing.assert_array_equal(around, windows[number % 2, : begin + room])
        assert len(sample.tokens) == tokens
        assert set(sequence) <= set(windows[:, begin:].ravel())
        never = found[3 + number]
        np.testing.assert_array_equal(never.tokens[-length:], sequence)
        np.testing.assert_array_equal(never.tokens[:-length], windows[number % 2, :-length])
        assert sample.chance_log_prob == pytest.approx(
            (length - 1) * math.log(1 / len(set(windows[:, begin:].ravel())))
        )


def test_samples_differ_and_depths_ask_for_the_same() -> None:
    found = repeated_sequences(WINDOWS, begin=BEGIN, samples=2, seed=5)
    assert [sample.depth for sample in found] == [depth for depth in (*DEPTHS, None) for _ in range(2)]
    ends = [sample.tokens[sample.first :].tolist() for sample in found]
    assert ends[0] != ends[1]
    assert ends[0::2] == [ends[0]] * 6
    other = repeated_sequences(WINDOWS, begin=BEGIN, samples=2, seed=6)
    assert other[0].tokens[-9:].tolist() != found[0].tokens[-9:].tolist()


def test_no_room_for_a_sequence() -> None:
    assert repeated_sequences(WINDOWS[:, :31], begin=0, samples=1) == []
    assert len(repeated_sequences(WINDOWS[:, :32], begin=0, samples=1)) == 6


def test_a_pass_key_is_named_at_its_depth_and_asked_for(tmp_path: Path) -> None:
    tokenizer = spelling(tmp_path)
    windows = np.array([tokenizer.encode(character * LONG) for character in "xyz"])
    found = passkeys(tokenizer, windows, begin=BEGIN, samples=2, depths=(0.0, 0.4, 1.0), seed=9)
    assert not isinstance(found, str)
    keys = set()
    for number, sample in enumerate(found):
        text = tokenizer.decode(sample.tokens.tolist())
        assert len(sample.tokens) == LONG
        key = text[-DIGITS:]
        assert key.isdecimal()
        keys.add(key)
        # The blank before the digits is a token too, but tells nothing.
        assert tokenizer.decode(sample.tokens[sample.first :].tolist()) == key
        assert text.endswith(f"{QUESTION} {key}")
        assert sample.chance_log_prob == pytest.approx(-5 * math.log(10))
        letter = "xyz"[number % 2]
        if sample.depth is None:
            assert text.count(key) == 1
            continue
        needle = NEEDLE.format(key=key)
        before, after = text[: -len(QUESTION) - DIGITS - 1].split(needle)
        assert set(before + after) == {letter}
        assert len(before) == BEGIN + round(sample.depth * (len(before) + len(after) - BEGIN))
    assert len(keys) == 2


def test_tokenizers_without_digits_and_short_windows_have_no_pass_keys(tmp_path: Path) -> None:
    reason = passkeys(spelling(tmp_path), WINDOWS[:, :150], begin=BEGIN, samples=1)
    assert reason == "windows of 150 tokens have no room for the question and a text"
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    reason = passkeys(TextTokenizer(tmp_path), WINDOWS, begin=BEGIN, samples=1)
    assert reason == "the tokenizer does not keep digits apart"


@pytest.mark.parametrize("depth", [-0.1, 1.5, math.nan])
def test_depths_beyond_the_context_are_refused(depth: float) -> None:
    with pytest.raises(DeltaLLMError, match="depth is"):
        repeated_sequences(WINDOWS, begin=0, samples=1, depths=(0.5, depth))


class Guesser(Trial):
    """Knows every token but those of samples with too large a depth, where it takes one of V at random."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self.baseline = None

    def read(self, window: np.ndarray, *, prompt: int = 0, first: int = 1) -> WindowResult:
        assert prompt == first - 1
        known = window[0] == 1
        count = len(window) - first
        loss = np.full(count, 0.0 if known else math.log(self._vocabulary))
        predictions = Predictions(loss, np.full(count, known))
        return WindowResult(predictions, CacheUse(None, None, 0, 0), None)


def test_scores_of_perfect_memory_and_of_none() -> None:
    samples = [
        Sample(REPEATED, depth, np.array([known, *range(9)]), 6, 4 * math.log(1 / 50))
        for depth, known in ((0.2, 0), (0.2, 1), (0.2, 0), (0.7, 1), (0.7, 1), (None, 0))
    ]
    ticks: list[None] = []
    found = retrieve(Guesser(50), samples, advance=lambda: ticks.append(None))
    assert len(ticks) == len(samples)
    assert [(score.depth, score.samples, score.tokens) for score in found] == [(0.2, 3, 4), (0.7, 2, 4), (None, 1, 4)]
    assert [score.model.hit_rate for score in found] == [pytest.approx(1 / 3), 1, 0]
    assert [score.model.token_accuracy for score in found] == [pytest.approx(1 / 3), 1, 0]
    guessed = 4 * math.log(1 / 50)
    assert [score.model.log_prob for score in found] == pytest.approx([guessed * 2 / 3, 0, guessed])
    for score in found:
        assert score.chance_log_prob == pytest.approx(guessed)
        assert score.chance_token_accuracy == pytest.approx(1 / 50)
        assert score.chance_hit_rate == pytest.approx(50**-4.0)
        assert score.baseline is None
    assert found[2].model.log_prob_interval is None
    # Student's of three samples, 4.30265 standard errors; no probability is above 1.
    low = guessed * 2 / 3 + 4.30265 * guessed / 3
    assert found[0].model.log_prob_interval == pytest.approx((low, 0), rel=1e-5)


def test_both_models_read_the_samples(rewritten: Rewritten, dense_path: Path) -> None:
    """Within the window the rewritten model is the dense one; with everything held behind it, it is not."""
    windows = np.random.default_rng(3).integers(0, 29, (2, 120))
    samples = repeated_sequences(windows, begin=0, samples=2, depths=(0.0, 0.6), seed=1)
    for window, same in ((120, True), (9, False)):
        path = rewritten(ROW.replace(threshold=1e9, window=window))
        found = retrieve(Trial(Reader(path, "decode"), Reader(dense_path, "decode")), samples)
        assert len(found) == 3
        for score in found:
            assert score.baseline is not None
            assert (abs(score.model.log_prob - score.baseline.log_prob) < 1e-3) == same


@pytest.mark.parametrize(
    ("said", "unsaid", "baseline", "at_chance"),
    [
        # Ten tokens at a chance of one in ten: three standard errors above it are 0.385.
        (0.4, 0.0, None, False),
        (0.3, 0.0, None, True),
        (0.4, 0.4, None, True),
        (0.4, 0.0, 0.1, True),
        (0.1, 0.0, 0.5, False),
    ],
)
def test_chance_is_said_to_be_chance(said: float, unsaid: float, baseline: float | None, at_chance: bool) -> None:
    """What counts is the best depth of the dense model, or of the only model."""

    def scored(depth: float | None, accuracy: float, other: float | None) -> RetrievalScore:
        found = [None if a is None else Retrieved(-9.0, None, a, 0.0) for a in (accuracy, other)]
        assert found[0] is not None
        return RetrievalScore(PASSKEY, depth, 2, 5.0, -11.5, 0.1, 1e-5, found[0], found[1])

    other = None if baseline is None else 0.0
    scores = [scored(0.1, 0.0, other), scored(0.9, said, baseline), scored(None, unsaid, other)]
    assert tasks_at_chance(scores) == [PASSKEY] * at_chance
