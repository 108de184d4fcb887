"""Text to tokens and back, with the tokenizer.json beside a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.side_files import read_json

# What an incomplete UTF-8 sequence decodes to: the rest of it is in the next tokens.
_REPLACEMENT = "\ufffd"


class TextTokenizer:
    """The tokenizer.json beside a model.

    Args:
        folder: the model's directory.

    Raises:
        DeltaLLMError: where the file is missing or is not a tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise DeltaLLMError(f"There is no {path}: copy the model's tokenizer.json next to it.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers package raises Exception itself
            raise DeltaLLMError(f"{path} is not a tokenizer file ({error}): copy it again.") from error
        self._begin = self._begin_token(folder)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids, with or without the special tokens that the model expects around a text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        if special_tokens and self._begin is not None and ids[:1] != [self._begin]:
            ids.insert(0, self._begin)
        return ids

    @property
    def begin_ids(self) -> list[int]:
        """The special tokens that the model expects before every text; empty for most models without a BOS token."""
        text = "a"
        whole, own = self.encode(text), self.encode(text, special_tokens=False)
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(own)] == own), [])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """A decoder for the tokens that follow this prompt."""
        return TextStream(self, prompt)

    def _begin_token(self, folder: Path) -> int | None:
        """The id that tokenizer_config.json wants before every text (add_bos_token), if any."""
        config = read_json(folder / "tokenizer_config.json")
        name = config.get("bos_token")
        if isinstance(name, dict):  # an AddedToken written out
            name = name.get("content")
        if config.get("add_bos_token") is not True or not isinstance(name, str):
            return None
        found: int | None = self._tokenizer.token_to_id(name)
        return found


class TextStream:
    """Turns one token after another into text, holding back bytes of unfinished characters.

    Tokens are decoded together with those before them: a decoder may treat the first one of a text differently.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-8:])
        self._start = 0
        self._shown = len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._ids.append(token)
        return self._advance(flush=False)

    def finish(self) -> str:
        """What was held back."""
        return self._advance(flush=True)

    def _advance(self, *, flush: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        text = self._tokenizer.decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(_REPLACEMENT) and not flush):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]
