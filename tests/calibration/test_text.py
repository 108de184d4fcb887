from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from support.special_tokens import with_special_tokens
from support.tiny_decoder import tiny_tokenizer

from deltallm_onnx.calibration.text import BUNDLED, SHARES, deal, read_text, split_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.tokenizer import TextTokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz ."


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path)


def letters(count: int) -> str:
    return "".join(np.random.default_rng(2).choice([*ALPHABET], count))


def test_no_token_is_in_two_parts(tokenizer: TextTokenizer) -> None:
    text = letters(1003)
    parts = split_text(text, tokenizer, name="t", window_tokens=31, context=100, windows=20)
    together = [*parts.sensitivity, *parts.search, *parts.verification]
    assert len(together) == 20
    starts = []
    for window in together:
        at = text.index("".join(ALPHABET[token] for token in window))
        starts.append(at)
    starts.sort()
    assert all(b - a >= 31 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize("count", [3, 4, 7, 16, 54, 200])
def test_windows_are_dealt_out_by_the_shares_and_mixed(count: int) -> None:
    dealt = deal(count)
    assert len(dealt) == count
    for part, share in enumerate(SHARES):
        assert dealt.count(part) >= 1
        assert abs(dealt.count(part) - count * share) <= 2
        # Any stretch of the text has its share: no part gets one book of five.
        for half in (dealt[: count // 2], dealt[count // 2 :]):
            assert abs(half.count(part) - dealt.count(part) / 2) <= 1


def test_a_begin_token_stands_before_every_window(tmp_path: Path) -> None:
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "z"}')
    parts = split_text(letters(500), TextTokenizer(tmp_path), name="t", window_tokens=21, context=None, windows=9)
    assert (np.concatenate([parts.sensitivity, parts.search, parts.verification])[:, 0] == 25).all()


@pytest.mark.parametrize(("template", "begin"), [("$A", []), ("$A .", []), (". $A .", [27]), (". . $A", [27, 27])])
def test_special_tokens_stand_before_windows_and_nowhere_else(tmp_path: Path, template: str, begin: list[int]) -> None:
    """Also where a tokenizer ends a text with one, or begins it with two."""
    text = "abcdefghijklmnopqrstuvwxy" * 4
    tokenizer = with_special_tokens(tmp_path / "model", template)
    parts = split_text(text, tokenizer, name="t", window_tokens=12, context=None, windows=5)
    together = np.concatenate([parts.sensitivity, parts.search, parts.verification])
    assert together.shape == (5, 12)
    own = together[:, len(begin) :]
    assert (together[:, : len(begin)] == begin).all()
    assert (np.diff(own, axis=1) % 25 == 1).all(), "the text's own letters"
    whole = split_text(text[: 3 * (12 - len(begin))], tokenizer, name="t", window_tokens=12, context=None, windows=9)
    assert whole.to_dict()["windows"] == {"sensitivity": 1, "search": 1, "verification": 1}


def test_windows_have_room_behind_special_tokens(tmp_path: Path) -> None:
    tokenizer = with_special_tokens(tmp_path / "model", ". . $A")
    with pytest.raises(DeltaLLMError, match="use at least 3, of at least 3 tokens"):
        split_text(letters(90), tokenizer, name="t", window_tokens=2, context=None, windows=5)
    parts = split_text(letters(90), tokenizer, name="t", window_tokens=3, context=None, windows=5)
    assert parts.search.shape == (2, 3)


def test_windows_are_as_long_as_the_context_or_1024(tokenizer: TextTokenizer) -> None:
    text = letters(4000)
    for context, length in ((77, 77), (2048, 1024), (None, 1024)):
        parts = split_text(text, tokenizer, name="t", window_tokens=None, context=context, windows=3)
        assert parts.search.shape == (1, length)


def test_a_short_text_gives_fewer_windows(tokenizer: TextTokenizer) -> None:
    parts = split_text(letters(100), tokenizer, name="t", window_tokens=20, context=None, windows=64)
    assert parts.to_dict()["windows"] == {"sensitivity": 1, "search": 2, "verification": 2}


def test_texts_of_several_files_and_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    lines = [{"body": "two", "text": "no"}, {"body": "three"}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_text([tmp_path / "a.txt", tmp_path / "b.jsonl"], text_key="body") == "one\n\ntwo\n\nthree"


def test_separators_of_other_scripts_do_not_end_a_line_of_json(tmp_path: Path) -> None:
    text = "one\u2028two\x85three"
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\r\n")
    assert read_text([tmp_path / "a.jsonl"]) == text


def test_a_text_that_never_ends_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltallm_onnx.evaluation.text.LARGEST_BYTES", 1000)
    for name, content in (("a.txt", "x" * 1001), ("a.jsonl", json.dumps({"text": "x" * 1000}))):
        (tmp_path / name).write_text(content)
        with pytest.raises(DeltaLLMError, match=rf"{name} has more than 1000 bytes: give a part of it"):
            read_text([tmp_path / name])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n\t", "is empty"),
        ("a.txt", b"\xff\xfe\xfa", "not UTF-8"),
        ("a.jsonl", b'{"text": "fine"}\nbroken\n', "Line 2 of"),
        ("a.jsonl", b'{"words": "fine"}\n', "no text under 'text'"),
        ("a.jsonl", b'["text"]\n', "no text under 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "no text under 'text'"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeltaLLMError, match=sentence):
        read_text([tmp_path / name])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="Cannot read the text"):
        read_text([tmp_path / "none.txt"])


@pytest.mark.parametrize(
    ("characters", "settings", "sentence"),
    [
        (
            59,
            {"window_tokens": 20, "context": None, "windows": 9},
            r"has 59 tokens, and its parts need 3 windows of 20",
        ),
        (500, {"window_tokens": 51, "context": 50, "windows": 9}, "longer than the model's context of 50"),
        (500, {"window_tokens": 1, "context": 50, "windows": 9}, "measure nothing"),
        (500, {"window_tokens": 20, "context": 50, "windows": 2}, "measure nothing"),
    ],
)
def test_texts_that_cannot_be_split_are_refused(
    tokenizer: TextTokenizer, characters: int, settings: dict[str, int], sentence: str
) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        split_text(letters(characters), tokenizer, name="t", **settings)


def test_the_bundled_text_is_there() -> None:
    text = read_text([BUNDLED])
    assert len(text) > 100_000
    assert "\n\n" in text
