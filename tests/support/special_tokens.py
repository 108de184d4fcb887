"""Tokenizers that put special tokens around a text."""

from __future__ import annotations

from pathlib import Path

from support.tiny_decoder import tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from deltallm_onnx.runtime import TextTokenizer


def with_special_tokens(folder: Path, template: str) -> TextTokenizer:
    """The tiny tokenizer with . and blank as special tokens around a text, saved in a new folder."""
    folder.mkdir()
    tokenizer = tiny_tokenizer()
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[(".", 27), (" ", 26)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextTokenizer(folder)
