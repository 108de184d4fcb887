"""A text file, and the windows of it that are read."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.windows import text_windows
from deltallm_onnx.runtime.tokenizer import TextTokenizer

#: All of a text is tokenized and held in memory, and a device file never ends.
LARGEST_BYTES = 256 << 20
#: What is read where nobody says: so many windows of so many tokens, at most.
WINDOWS, WINDOW_TOKENS = 16, 1024
#: A limit of tokens makes windows shorter before it leaves fewer than so many, but not shorter than this.
LEAST_WINDOWS, SHORT_WINDOW_TOKENS = 4, 256


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A text as token ids.

    Attributes:
        path: the file.
        text: what it holds.
        sha256: of its bytes, in hex.
        token_ids: of the whole text, without special tokens.
        begin: special tokens that the model expects before every text.
    """

    path: Path
    text: str
    sha256: str
    token_ids: list[int]
    begin: list[int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the text itself."""
        return {"path": str(self.path), "sha256": self.sha256, "tokens": len(self.token_ids)}


def read_text(path: Path, tokenizer: TextTokenizer) -> TextFile:
    """Read and tokenize a UTF-8 file.

    Raises:
        DeltaLLMError: as `read_utf8`, and where it holds no text.
    """
    text = read_utf8(path)
    if not text.strip():
        raise DeltaLLMError(f"The text {path} is empty: give one with at least a window of tokens.")
    ids, begin = tokenized(text, tokenizer)
    return TextFile(path, text, hashlib.sha256(text.encode()).hexdigest(), ids, begin)


def read_utf8(path: Path) -> str:
    """A UTF-8 file, byte by byte as it is.

    Raises:
        DeltaLLMError: where it cannot be read, is not UTF-8, or holds more than LARGEST_BYTES.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise DeltaLLMError(f"The text {path} has more than {LARGEST_BYTES} bytes: give a part of it.")
        return data.decode("utf-8")
    except OSError as error:
        raise DeltaLLMError(f"Cannot read the text {path} ({error.strerror or error}): name a text file.") from error
    except UnicodeDecodeError as error:
        raise DeltaLLMError(f"The text {path} is not UTF-8 ({error}): convert it first.") from error


def tokenized(text: str, tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """A text without special tokens, and those that the model expects before every window that is cut from it."""
    return tokenizer.encode(text, special_tokens=False), tokenizer.begin_ids


def choose_windows(
    text: TextFile,
    *,
    context: int | None = None,
    window_tokens: int | None = None,
    windows: int | None = None,
    max_tokens: int | None = None,
) -> npt.NDArray[np.int64]:
    """Windows spread evenly over a text.

    Args:
        text: what they are cut from; its special tokens begin every window.
        context: the model's context length in tokens, if known.
        window_tokens: S, special tokens included; None chooses at most WINDOW_TOKENS.
        windows: N; None takes as many as there are, at most WINDOWS.
        max_tokens: tokens of all windows together, at most.

    Returns:
        Token ids int64 [N, S].

    Raises:
        DeltaLLMError: where a number is too small, where windows do not fit the context or the limit, and where the
            text is too short.
    """
    for name, value, least in (
        ("window-tokens", window_tokens, 3),
        ("windows", windows, 1),
        ("max-tokens", max_tokens, 3),
    ):
        if value is not None and value < least:
            raise DeltaLLMError(f"{name} is {value}: give a whole number of at least {least}.")
    if window_tokens is not None:
        S = window_tokens
        if context is not None and context < S:
            raise DeltaLLMError(f"window-tokens is {S}, and the model's context has {context}: use shorter windows.")
        if max_tokens is not None and max_tokens < S:
            raise DeltaLLMError(
                f"max-tokens is {max_tokens}, and one window has {S}: raise it, or use shorter windows."
            )
    else:
        S = min(WINDOW_TOKENS, context or WINDOW_TOKENS)
        if max_tokens is not None:
            S = min(S, max(max_tokens // LEAST_WINDOWS, min(max_tokens, SHORT_WINDOW_TOKENS)))
    own = S - len(text.begin)
    fit = len(text.token_ids) // max(own, 1)
    if fit < 1:
        raise DeltaLLMError(
            f"The text {text.path} has {len(text.token_ids)} tokens, fewer than one window of {S}: give a longer "
            "text, or shorter windows with --window-tokens."
        )
    count = min(fit, WINDOWS) if windows is None else windows
    if max_tokens is not None:
        count = min(count, max_tokens // S)
    return text_windows(text.token_ids, S, count, begin=text.begin)


def refuse_other_tokenizer(model: Path, baseline: Path, text: TextFile) -> None:
    """Refuse a baseline whose own tokenizer reads the text differently; one without a tokenizer takes the model's.

    Args:
        model: the folder of the tokenizer that read the text.
        baseline: the folder of the baseline.
        text: what was read.
    """
    files = [folder / "tokenizer.json" for folder in (model, baseline)]
    if not files[1].is_file() or files[0].read_bytes() == files[1].read_bytes():
        return
    other = TextTokenizer(baseline)
    if tokenized(text.text, other) != (text.token_ids, text.begin):
        raise DeltaLLMError(
            f"{files[1]} reads the text differently from {files[0]}: compare a model with its own dense form."
        )
