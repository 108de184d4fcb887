"""Windows of token ids, cut from a text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError


def text_windows(
    token_ids: Sequence[int], length: int, count: int, *, begin: Sequence[int] = ()
) -> npt.NDArray[np.int64]:
    """Cut windows that do not overlap, spread evenly over a text.

    Args:
        token_ids: the text.
        length: tokens per window, `begin` included; at least 1 more than that, and ≥ 2.
        count: windows, ≥ 1.
        begin: tokens put before every window, such as the one that begins a text.

    Returns:
        int64 [count, length].

    Raises:
        DeltaLLMError: where the text is too short.
    """
    own = length - len(begin)
    if length < 2 or own < 1 or count < 1:
        raise DeltaLLMError(f"{count} windows of {length} tokens score nothing: use at least 1 of at least 2 tokens.")
    if len(token_ids) < own * count:
        raise DeltaLLMError(
            f"The text has {len(token_ids)} tokens, {count} windows of {length} need {own * count}: "
            "give a longer text or fewer, shorter windows."
        )
    stride = len(token_ids) // count
    return np.array([[*begin, *token_ids[i * stride : i * stride + own]] for i in range(count)], np.int64)
