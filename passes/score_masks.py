"""All that one attention adds to its scores or hides of them, taken together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import FiniteBias, MaskContract, conjunction, read_hidden, read_mask
from deltallm_onnx.passes.site import MaskMeaning, NotUnderstood

#: Axes of scores whose first one runs through batch and heads.
_JOINED = 3
#: A hidden score multiplied by less might be seen again: exp(−65504 / 64) is 0 in float32, and so is what is below.
_LEAST_FACTOR = 2.0**-6


@dataclasses.dataclass(frozen=True)
class Mask:
    """One of them.

    Attributes:
        value: truth values or numbers, broadcast to the scores.
        rank: number of axes of the scores: 4, or 3 where batch and heads share one.
        hides: whether true means hidden: the condition of Where(value, −∞, scores).
        factor: what the masked scores are multiplied by afterwards.
    """

    value: ir.Value
    rank: int = 4
    hides: bool = False
    factor: float = 1.0

    @property
    def is_joined(self) -> bool:
        """Whether batch and heads share an axis of the scores."""
        return self.rank == _JOINED


def read_masks(
    masks: Sequence[Mask], contract: MaskContract, interpreter: MaskInterpreter, *, is_causal: bool = False
) -> tuple[MaskMeaning, Mask | None]:
    """What they hide together, which must be causality at least, and what is added to the scores that are left.

    Args:
        masks: in any order.
        contract: the lengths they must have.
        interpreter: evaluates them.
        is_causal: whether the operator itself hides later keys.

    Returns:
        The meaning, and what is added; None where that is nothing.

    Raises:
        NotUnderstood: with the reason.
    """
    meaning = MaskMeaning(causal=is_causal, sliding_window=None, padding=None)
    bias: Mask | None = None
    for mask in masks:
        if mask.factor < _LEAST_FACTOR:
            raise NotUnderstood(f"it multiplies scores by {mask.factor:g} after the mask {mask.value.name!r}")
        try:
            read = read_hidden if mask.hides else read_mask
            meaning = conjunction(meaning, read(mask.value, contract, interpreter))
        except FiniteBias as reason:
            if bias is not None:
                raise NotUnderstood(
                    f"it adds both {bias.value.name!r} and {mask.value.name!r} to its scores; one bias is understood"
                ) from reason
            bias = _checked_bias(mask, reason)
    if not meaning.causal:
        names = ", ".join(repr(mask.value.name) for mask in masks)
        seen = f"its mask {names} is not causal" if masks else "it has no mask"
        raise NotUnderstood(f"{seen} and its is_causal is 0, so queries see later keys")
    return meaning, bias


def _checked_bias(mask: Mask, reason: FiniteBias) -> Mask:
    if mask.factor != 1:
        raise NotUnderstood(f"{reason}, and is multiplied by {mask.factor:g} with the scores") from reason
    rank = None if mask.value.shape is None else len(mask.value.shape)
    if mask.is_joined and rank != _JOINED:
        raise NotUnderstood(f"{reason}, and it has {rank} axes where its scores have {mask.rank}") from reason
    return mask
