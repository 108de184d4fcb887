"""Predictions can be compared only where both are of the same tokens."""

from __future__ import annotations

from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError


def refuse_other_vocabulary(model: Path, tokens: int, baseline: Path, baseline_tokens: int) -> None:
    """Refuse two models whose vocabularies differ in size.

    Args:
        model: file of the model that is judged.
        tokens: in its vocabulary.
        baseline: file of the model that it is held against.
        baseline_tokens: in its vocabulary.

    Raises:
        DeltaLLMError: with both sizes.
    """
    if tokens != baseline_tokens:
        raise DeltaLLMError(
            f"{model} has {tokens} tokens in its vocabulary and {baseline} {baseline_tokens}: compare a model with its "
            "own dense form."
        )
