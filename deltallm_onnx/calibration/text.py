"""The calibration text: read, cut into windows, and split into three parts that share no token."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import text_windows
from deltallm_onnx.evaluation.text import read_utf8, tokenized
from deltallm_onnx.runtime.tokenizer import TextTokenizer

#: A window is as long as the model's context, but no longer than this: tokens.
LONGEST_WINDOW = 1024
#: Shares of the windows that the parts get: sensitivity, search, verification.
SHARES = (0.08, 0.58, 0.34)
#: The bundled text: excerpts of five books, apart from those the bundled model was trained on and is validated with.
BUNDLED = Path(__file__).with_name("books.txt")


@dataclasses.dataclass(frozen=True, eq=False)
class TextParts:
    """Windows of equal length, int64 [N, S] each; no token is in two of them.

    Attributes:
        sensitivity: for the curves of single heads.
        search: for closing on the budget.
        verification: for the final numbers; nothing is chosen by them.
        sha256: of the text, in hex.
        name: of the text, for reports.
    """

    sensitivity: npt.NDArray[np.int64]
    search: npt.NDArray[np.int64]
    verification: npt.NDArray[np.int64]
    sha256: str
    name: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        parts = {"sensitivity": self.sensitivity, "search": self.search, "verification": self.verification}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "window_tokens": self.search.shape[1],
            "windows": {name: len(windows) for name, windows in parts.items()},
            "tokens": sum(windows.size for windows in parts.values()),
        }


def read_text(files: Sequence[Path], *, text_key: str = "text") -> str:
    """The texts of local files, one after the other, with an empty line between.

    Args:
        files: plain text, or JSON lines (name ends in .jsonl) with the text under one key.
        text_key: that key.

    Raises:
        DeltaLLMError: for a file that cannot be read, is no UTF-8, is too large or lacks the key, and where there is no
            text at all.
    """
    texts = []
    for file in files:
        content = read_utf8(file)
        texts.append(_texts_of_lines(content, file, text_key) if file.suffix == ".jsonl" else content)
    joined = "\n\n".join(texts)
    if not joined.strip():
        names = ", ".join(str(file) for file in files)
        raise DeltaLLMError(f"The text {names} is empty: give a file with text.")
    return joined


def _texts_of_lines(content: str, file: Path, text_key: str) -> str:
    texts = []
    # Not splitlines: JSON has line separators of other scripts within its strings.
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DeltaLLMError(f"Line {number} of {file} is not JSON ({error}): correct it.") from error
        text = record.get(text_key) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise DeltaLLMError(f"Line {number} of {file} has no text under {text_key!r}: name its key by --text-key.")
        texts.append(text)
    return "\n\n".join(texts)


def split_text(
    text: str,
    tokenizer: TextTokenizer,
    *,
    name: str,
    window_tokens: int | None,
    context: int | None,
    windows: int,
) -> TextParts:
    """Cut a text into windows and deal them out to the three parts.

    The windows of a part are spread over the whole text, so that each part sees all of its styles.

    Args:
        text: as read.
        tokenizer: the model's.
        name: of the text, for sentences and reports.
        window_tokens: tokens per window; None takes the model's context, at most LONGEST_WINDOW.
        context: the model's context length in tokens, if known.
        windows: of all parts together, at most; fewer where the text is shorter, at least one per part.

    Raises:
        DeltaLLMError: for a text shorter than three windows, and for windows longer than the model's context.
    """
    length = window_tokens if window_tokens is not None else min(LONGEST_WINDOW, context or LONGEST_WINDOW)
    if context is not None and length > context:
        raise DeltaLLMError(
            f"Windows of {length} tokens are longer than the model's context of {context}: shorten them."
        )
    ids, begin = tokenized(text, tokenizer)
    own = length - len(begin)
    if length < 2 or own < 1 or windows < len(SHARES):
        raise DeltaLLMError(
            f"{windows} windows of {length} tokens measure nothing: use at least {len(SHARES)}, of at least "
            f"{max(2, len(begin) + 1)} tokens."
        )
    count = min(windows, len(ids) // own)
    if count < len(SHARES):
        raise DeltaLLMError(
            f"The text {name} has {len(ids)} tokens, and its parts need {len(SHARES)} windows of {length}, "
            f"{own * len(SHARES)} of the text's tokens: give a longer text, or shorter windows by --window-tokens."
        )
    cut = text_windows(ids, length, count, begin=begin)
    dealt = deal(count)
    sensitivity, search, verification = (
        cut[[i for i, part in enumerate(dealt) if part == wanted]] for wanted in range(len(SHARES))
    )
    return TextParts(sensitivity, search, verification, hashlib.sha256(text.encode()).hexdigest(), name)


def deal(count: int) -> list[int]:
    """Which part each of `count` windows goes to: near SHARES, evenly mixed, and each part gets one.

    Args:
        count: windows, at least as many as there are parts.
    """
    sizes = [max(1, round(count * share)) for share in SHARES]
    while sum(sizes) != count:
        largest = max(range(len(sizes)), key=lambda part: sizes[part])
        sizes[largest] += 1 if sum(sizes) < count else -1
    given, dealt = [0] * len(sizes), []
    for number in range(1, count + 1):
        # The part that is furthest behind its share of the windows so far.
        part = max(range(len(sizes)), key=lambda p: sizes[p] * number / count - given[p])
        given[part] += 1
        dealt.append(part)
    return dealt
