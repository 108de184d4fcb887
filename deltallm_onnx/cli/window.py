"""The value of --window: tokens, or a share of the context."""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation

from deltallm_onnx.errors import DeltaLLMError


def parse_window(text: str, context: int | None) -> int:
    """Tokens of the exact window.

    Args:
        text: a whole number of tokens, or a percentage of the context such as "5%".
        context: context length in tokens; None where it is not known.

    Raises:
        DeltaLLMError: for anything else, for a negative number, and for a percentage of an unknown context.
    """
    stripped = text.strip()
    if not stripped.endswith("%"):
        try:
            tokens = int(stripped)
        except ValueError:
            tokens = -1
        if tokens < 0:
            raise DeltaLLMError(f"window is {text!r}: give a whole number of tokens, 0 or more, or a share such as 5%.")
        return tokens
    try:
        # Decimal: 7 % of 300 is 21, while 0.07 * 300 is a little more and would be rounded up to 22.
        share = Decimal(stripped[:-1].strip())
    except InvalidOperation:
        share = Decimal("NaN")
    if share.is_nan() or not 0 <= share <= 100:
        raise DeltaLLMError(f"window is {text!r}: give a share from 0% to 100% of the context, or a number of tokens.")
    if context is None:
        raise DeltaLLMError(
            f"window is {text!r}, but the model's context length is not known (no config.json beside it): "
            "give --context TOKENS, or the window in tokens."
        )
    return math.ceil(share * context / 100)
