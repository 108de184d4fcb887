"""Whole numbers of the command line."""

from __future__ import annotations

from deltallm_onnx.errors import DeltaLLMError


def at_least(name: str, value: int | None, least: int) -> None:
    """Refuse a number that is too small.

    Args:
        name: of the option, without its dashes.
        value: as given; None was not given.
        least: the smallest one allowed.

    Raises:
        DeltaLLMError: naming both.
    """
    if value is not None and value < least:
        raise DeltaLLMError(f"{name} is {value}: give a whole number of at least {least}.")
