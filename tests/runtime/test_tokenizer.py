from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_decoder import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import TextTokenizer, context_length, end_of_sequence_ids


def byte_tokenizer() -> Tokenizer:
    """One token per byte of UTF-8, as every byte-level BPE starts."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*alphabet, "<s>"])}, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def saved(tokenizer: Tokenizer, folder: Path, **config: object) -> TextTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return TextTokenizer(folder)


@pytest.mark.parametrize("text", ["plain", "naïve café", "日本語 and 🙂🙂!", "ends in half 🙂"])
def test_a_stream_gives_the_text_and_never_half_a_character(tmp_path: Path, text: str) -> None:
    tokenizer = saved(byte_tokenizer(), tmp_path)
    ids = tokenizer.encode(text)
    stream = tokenizer.stream(tokenizer.encode("before"))
    pieces = [stream.push(token) for token in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_what_never_becomes_a_character_is_shown_at_the_end(tmp_path: Path) -> None:
    tokenizer = saved(byte_tokenizer(), tmp_path)
    ids = tokenizer.encode("ab🙂")[:-1]
    stream = tokenizer.stream([])
    assert "".join(stream.push(token) for token in ids) == "ab"
    assert stream.finish() == "\ufffd"


def test_the_begin_token_is_added_once(tmp_path: Path) -> None:
    begin = byte_tokenizer().token_to_id("<s>")
    assert saved(byte_tokenizer(), tmp_path).encode("a")[0] != begin
    config: dict[str, object] = {"add_bos_token": True, "bos_token": "<s>"}
    for name in ("<s>", {"content": "<s>"}):
        config["bos_token"] = name
        assert saved(byte_tokenizer(), tmp_path, **config).encode("a")[:1] == [begin]
    own = byte_tokenizer()
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    assert saved(own, tmp_path, **config).encode("a").count(begin) == 1


def test_a_missing_or_corrupt_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match=r"There is no .*tokenizer\.json"):
        TextTokenizer(tmp_path)
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    whole = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DeltaLLMError, match="not a tokenizer file"):
        TextTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, set()),
        ({"config.json": {"eos_token_id": 7}}, {7}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [3, 4]}}, {3, 4}),
        ({"genai_config.json": {"model": {"eos_token_id": 9}}}, {9}),
        # genai_config.json must hold a number: beside a config.json without one it means nothing.
        ({"config.json": {"eos_token_id": None}, "genai_config.json": {"model": {"eos_token_id": 0}}}, set()),
    ],
)
def test_end_ids_come_from_the_first_file_that_has_them(
    tmp_path: Path, files: dict[str, object], expected: set[int]
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_text(json.dumps(data))
    assert end_of_sequence_ids(tmp_path) == expected


@pytest.mark.parametrize(
    "text", ['{"eos_token_id": "two"}', '{"eos_token_id": [1, -1]}', "[1]", "{", '{"eos_token_id": true}']
)
def test_a_wrong_end_id_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(DeltaLLMError, match=r"generation_config\.json"):
        end_of_sequence_ids(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("config.json", {"max_position_embeddings": 512}, 512),
        ("config.json", {"n_positions": 300}, 300),
        ("config.json", {"text_config": {"max_position_embeddings": 700}}, 700),
        ("genai_config.json", {"model": {"context_length": 900}}, 900),
        ("config.json", {"max_position_embeddings": -5}, None),
    ],
)
def test_context_length(tmp_path: Path, name: str, data: object, expected: int | None) -> None:
    (tmp_path / name).write_text(json.dumps(data))
    assert context_length(tmp_path) == expected
