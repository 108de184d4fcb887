"""Which windows of a text are read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.special_tokens import with_special_tokens
from tokenizers import Tokenizer

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.text import TextFile, choose_windows, read_text, refuse_other_tokenizer


def text_of(tokens: int, begin: int = 1) -> TextFile:
    return TextFile(Path("book.txt"), "", "", list(range(tokens)), [7] * begin)


@pytest.mark.parametrize(
    ("tokens", "options", "shape"),
    [
        (90_000, {}, (16, 1024)),
        (3000, {}, (2, 1024)),
        (90_000, {"context": 512}, (16, 512)),
        (90_000, {"context": 4096, "window_tokens": 2048}, (16, 2048)),
        (90_000, {"windows": 3}, (3, 1024)),
        (90_000, {"max_tokens": 5000}, (4, 1024)),
        (90_000, {"max_tokens": 2000}, (4, 500)),
        (90_000, {"max_tokens": 700}, (2, 256)),
        (90_000, {"max_tokens": 50}, (1, 50)),
        (90_000, {"max_tokens": 5000, "windows": 2}, (2, 1024)),
        (90_000, {"max_tokens": 5000, "windows": 30, "window_tokens": 100}, (30, 100)),
        (90_000, {"max_tokens": 1000, "windows": 30, "window_tokens": 100}, (10, 100)),
        (99, {"window_tokens": 100}, (1, 100)),
    ],
)
def test_windows(tokens: int, options: dict[str, int], shape: tuple[int, int]) -> None:
    windows = choose_windows(text_of(tokens), **options)
    assert windows.shape == shape
    assert windows.size <= options.get("max_tokens", windows.size)
    assert (windows[:, 0] == 7).all()
    own = windows[:, 1:]
    assert (np.diff(own, axis=1) == 1).all()
    assert len(set(own.ravel().tolist())) == own.size, "windows do not overlap"


@pytest.mark.parametrize(
    ("tokens", "options", "sentence"),
    [
        (98, {"window_tokens": 100}, "book.txt has 98 tokens, fewer than one window of 100"),
        (500, {}, "fewer than one window of 1024"),
        (300, {"window_tokens": 100, "windows": 4}, "has 300 tokens, 4 windows of 100 need 396"),
        (9000, {"window_tokens": 100, "context": 99}, "the model's context has 99"),
        (9000, {"window_tokens": 100, "max_tokens": 99}, "max-tokens is 99, and one window has 100"),
        (9000, {"window_tokens": 2}, "window-tokens is 2"),
        (9000, {"windows": 0}, "windows is 0"),
        (9000, {"max_tokens": -1}, "max-tokens is -1"),
    ],
)
def test_windows_that_cannot_be(tokens: int, options: dict[str, int], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        choose_windows(text_of(tokens), **options)


@pytest.mark.parametrize(("template", "begin"), [("$A", []), (". $A", [27]), (". $A .", [27]), (". . $A", [27, 27])])
def test_special_tokens_begin_every_window(tmp_path: Path, template: str, begin: list[int]) -> None:
    (tmp_path / "text").write_text("abcdefgh", encoding="utf-8")
    text = read_text(tmp_path / "text", with_special_tokens(tmp_path / "model", template))
    assert text.token_ids == list(range(8))
    assert text.begin == begin
    assert text.to_dict() == {
        "path": str(tmp_path / "text"),
        "sha256": hashlib.sha256(b"abcdefgh").hexdigest(),
        "tokens": 8,
    }


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"", "is empty"), (b" \n\t ", "is empty"), (b"caf\xe9", "is not UTF-8"), (None, "Cannot read")],
)
def test_texts_that_are_none(tmp_path: Path, data: bytes | None, sentence: str) -> None:
    tokenizer = with_special_tokens(tmp_path / "model", "$A")
    if data is not None:
        (tmp_path / "text").write_bytes(data)
    with pytest.raises(DeltaLLMError, match=sentence):
        read_text(tmp_path / "text", tokenizer)


def test_a_baseline_must_read_the_text_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdefgh", encoding="utf-8")
    text = read_text(tmp_path / "text", with_special_tokens(tmp_path / "model", ". $A"))
    (tmp_path / "none").mkdir()
    with_special_tokens(tmp_path / "same", ". $A .")  # what comes behind a text is not read
    for name in ("model", "none", "same"):
        refuse_other_tokenizer(tmp_path / "model", tmp_path / name, text)
    with_special_tokens(tmp_path / "other begin", "$A")
    with_special_tokens(tmp_path / "other ids", ". $A")
    path = tmp_path / "other ids" / "tokenizer.json"
    data = Tokenizer.from_file(str(path)).to_str().replace('"a":0', '"a":1').replace('"b":1', '"b":0')
    path.write_text(data, encoding="utf-8")
    for name in ("other begin", "other ids"):
        with pytest.raises(DeltaLLMError, match="reads the text differently"):
            refuse_other_tokenizer(tmp_path / "model", tmp_path / name, text)
