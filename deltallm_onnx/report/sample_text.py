"""The text that models read for a report: windows spread over it, and a sample from its beginning."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import text_windows
from deltallm_onnx.evaluation.text import read_text
from deltallm_onnx.report.request import USUAL_WINDOW, ReportRequest
from deltallm_onnx.runtime import TextTokenizer, context_length


@dataclasses.dataclass(frozen=True, eq=False)
class SampleText:
    """A text as token ids.

    Attributes:
        facts: what the report says about it.
        windows: int64 [N, S].
        sample: int64 [T], the beginning of the text.
        sample_tokens: text of each token of the sample.
    """

    facts: dict[str, Any]
    windows: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    sample_tokens: tuple[str, ...]


def read_sample(request: ReportRequest, exact_tokens: int) -> SampleText:
    """Read, tokenise and cut the text of a request.

    Args:
        request: with a text.
        exact_tokens: sinks and window of the model: nothing is held in a text that is no longer.

    Raises:
        DeltaLLMError: for a text that is missing, not UTF-8 or too short, and for windows beyond the model's context.
    """
    path = request.text
    if path is None:
        raise ValueError("This request has no text.")
    tokenizer = TextTokenizer(request.model.parent)
    text = read_text(path, tokenizer)
    ids, begin = text.token_ids, text.begin
    available = len(begin) + len(ids)
    context = context_length(request.model.parent)
    length = _window_length(request, available, context)
    if min(available, length) <= exact_tokens + 1:
        found, what = f"has {len(ids)} tokens", "a longer text"
        if length < available:
            found, what = f"is read in windows of {length} tokens", "longer windows"
        raise DeltaLLMError(
            f"The text {path} {found}, and the model keeps {exact_tokens} tokens exact (sinks and window): give {what}."
        )
    count = min(request.windows, len(ids) // (length - len(begin)))
    windows = text_windows(ids, length, max(count, 1), begin=begin)
    sample = [*begin, *ids][: min(request.sample_tokens, context or request.sample_tokens)]
    return SampleText(
        facts={
            "file": path.name,
            "sha256": text.sha256,
            "tokens": len(ids),
            "windows": len(windows),
            "window_tokens": length,
            "sample_tokens": len(sample),
            "sample": tokenizer.decode(sample),
        },
        windows=windows,
        sample=np.array(sample, np.int64),
        sample_tokens=tuple(tokenizer.decode([token]) for token in sample),
    )


def _window_length(request: ReportRequest, available: int, context: int | None) -> int:
    """Tokens of a window: what was asked for, else what fits."""
    if request.window_tokens is None:
        return max(2, min(USUAL_WINDOW, available, context or USUAL_WINDOW))
    if context is not None and request.window_tokens > context:
        raise DeltaLLMError(
            f"Windows of {request.window_tokens} tokens are longer than the model's context of {context}: give shorter "
            "ones."
        )
    return request.window_tokens
