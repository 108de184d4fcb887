"""All that one attention adds to its scores or hides of them, taken together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes.affine import ONE, Affine
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
        require_broadcast(mask.value, scores_shape(contract, is_joined=mask.is_joined), interpreter)
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
            bias = _checked_bias(mask, contract, interpreter, reason)
    if not meaning.causal:
        names = ", ".join(repr(mask.value.name) for mask in masks)
        seen = f"its mask {names} is not causal" if masks else "it has no mask"
        raise NotUnderstood(f"{seen} and its is_causal is 0, so queries see later keys")
    return meaning, bias


def scores_shape(contract: MaskContract, *, is_joined: bool) -> tuple[Affine | None, ...]:
    """[B, Hq, S, T], or [B·Hq, S, T]; None for what is not known."""
    batch, heads = contract.batch, contract.heads
    tail = (contract.new_length, contract.total_length)
    if is_joined:
        return (None if batch is None or heads is None else batch.scaled(heads), *tail)
    return (batch, None if heads is None else Affine(heads), *tail)


def require_broadcast(value: ir.Value, scores: Sequence[Affine | None], interpreter: MaskInterpreter) -> None:
    """Refuse what makes more scores than there are when it joins them.

    Lengths with names are proven where they matter, by `masks`; a number where the scores have another is not.

    Args:
        value: added to the scores, or takes the place of some.
        scores: the lengths of their axes; None where one is not known.
        interpreter: derives shapes.

    Raises:
        NotUnderstood: naming the value and the axis.
    """
    try:
        shape = interpreter.shape(value)
    except NotUnderstood:
        return
    if len(shape) > len(scores):
        raise NotUnderstood(f"its mask {value.name!r} has {len(shape)} axes and its scores have {len(scores)}")
    for axis in range(-len(shape), 0):
        length, expected = shape[axis], scores[axis]
        if length.is_constant() and length != ONE and expected is not None and length != expected:
            raise NotUnderstood(
                f"its mask {value.name!r} has {length} entries along axis {axis} where its scores have {expected}"
            )


def _checked_bias(mask: Mask, contract: MaskContract, interpreter: MaskInterpreter, reason: FiniteBias) -> Mask | None:
    """The bias as it is to be added; None for one that is the same for all keys, which no softmax sees."""
    if mask.factor != 1:
        raise NotUnderstood(f"{reason}, and is multiplied by {mask.factor:g} with the scores") from reason
    rank = None if mask.value.shape is None else len(mask.value.shape)
    if mask.is_joined and rank != _JOINED:
        raise NotUnderstood(f"{reason}, and it has {rank} axes where its scores have {mask.rank}") from reason
    shape = interpreter.shape(mask.value)
    if shape and shape[-1] == ONE != contract.total_length:
        return None
    if mask.is_joined and shape[0] == ONE:
        return dataclasses.replace(mask, rank=4)
    return mask
