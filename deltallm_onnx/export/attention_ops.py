"""The two torch operators an export is traced with, and the ONNX each of them becomes.

`visible` turns the padding mask into the boolean mask of a layer; `attention` is one attention layer with its cache
append. Both are opaque to `torch.export`, so that they arrive in the ONNX graph whole:

    visible    Range, LessOrEqual, Greater, Cast, And  ->  bool [B, 1, S, T]
    attention  one standard Attention node (domain '', opset 23) with past and present

Importing this module imports torch and registers the operators.
"""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import opset23 as op
from torch import Tensor

#: Window of a layer that sees the whole past.
NO_WINDOW = 0


@torch.library.custom_op("deltallm_onnx::visible", mutates_args=())  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def visible(input_ids: Tensor, attention_mask: Tensor, window: int) -> Tensor:
    """Which keys each new token sees: causality, the layer's sliding window and padding.

    Args:
        input_ids: int64 [B, S]; only its shape is read.
        attention_mask: int64 [B, T], 0 = padding. The new tokens are its last S columns.
        window: keys a query sees, itself included; `NO_WINDOW` for all.

    Returns:
        bool [B, 1, S, T].
    """
    S, T = input_ids.shape[1], attention_mask.shape[1]
    kv_index = torch.arange(T)[None, :]
    query_index = (torch.arange(S) + (T - S))[:, None]
    seen = kv_index <= query_index
    if window != NO_WINDOW:
        seen = seen & (kv_index > query_index - window)
    return seen & attention_mask.to(torch.bool)[:, None, None, :]


@visible.register_fake  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def _visible_shape(input_ids: Tensor, attention_mask: Tensor, window: int) -> Tensor:
    del window
    B, S = input_ids.shape
    return attention_mask.new_empty((B, 1, S, attention_mask.shape[1]), dtype=torch.bool)


@torch.library.custom_op("deltallm_onnx::attention", mutates_args=())  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def attention(  # noqa: PLR0917 - torch.library takes positional operands
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """softmax(cap(scale·q·kᵀ) where seen)·v over the past and the new tokens; cap(x) = softcap·tanh(x/softcap).

    Args:
        query: float [B, Hq, S, D].
        key: float [B, Hkv, S, D], after the rotary embedding.
        value: float [B, Hkv, S, D].
        seen: bool [B, 1, S, P+S].
        past_key: float [B, Hkv, P, D].
        past_value: float [B, Hkv, P, D].
        scale: multiplies q·k.
        softcap: 0 for none; applied before the mask.

    Returns:
        output [B, Hq, S, D], present_key and present_value [B, Hkv, P+S, D]. A query that sees nothing gives 0.
    """
    present_key, present_value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    group = query.shape[1] // key.shape[1]
    scores = query @ present_key.repeat_interleave(group, 1).transpose(2, 3) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    probabilities = torch.softmax(scores, -1).nan_to_num(0.0)
    return probabilities @ present_value.repeat_interleave(group, 1), present_key, present_value


@attention.register_fake  # type: ignore[untyped-decorator]  # torch is checked as untyped, see pyproject.toml
def _attention_shape(  # noqa: PLR0917 - as `attention`
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    past_key: Tensor,
    past_value: Tensor,
    scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del seen, scale, softcap
    T = past_key.shape[2] + key.shape[2]
    present_key = key.new_empty((*key.shape[:2], T, key.shape[3]))
    present_value = value.new_empty((*value.shape[:2], T, value.shape[3]))
    del past_value
    return query.new_empty((*query.shape[:3], value.shape[3])), present_key, present_value


def _visible_onnx(input_ids: Any, attention_mask: Any, window: int) -> Any:
    """`visible` in standard operators; `passes` matches exactly this shape."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    first_axis, second_axis = op.Constant(value_ints=[0]), op.Constant(value_ints=[1])
    S = op.Squeeze(op.Shape(input_ids, start=1, end=2))
    T = op.Squeeze(op.Shape(attention_mask, start=1, end=2))
    kv_index = op.Unsqueeze(op.Range(zero, T, one), first_axis)
    query_index = op.Unsqueeze(op.Add(op.Range(zero, S, one), op.Sub(T, S)), second_axis)
    seen = op.LessOrEqual(kv_index, query_index)
    if window != NO_WINDOW:
        inside = op.Greater(kv_index, op.Sub(query_index, op.Constant(value_int=window)))
        seen = op.And(seen, inside)
    padding = op.Unsqueeze(op.Cast(attention_mask, to=9), op.Constant(value_ints=[1, 2]))  # 9 = bool
    return op.And(seen, padding)


def _attention_onnx(  # noqa: PLR0917 - as `attention`
    query: Any,
    key: Any,
    value: Any,
    seen: Any,
    past_key: Any,
    past_value: Any,
    scale: float,
    softcap: float,
) -> Any:
    """`attention` as one standard node.

    Softcap must come before the mask, as in transformers' eager attention and docs/spec.md. ONNX said otherwise until
    github.com/onnx/onnx/issues/7865: ONNX Runtime's CPU kernel masks first up to 1.26 and last from 1.27 on. A query
    that sees nothing gives 0 from 1.28 on (before: the mean of the values, NaN in 1.23).
    """
    if softcap:
        return op.Attention(query, key, value, seen, past_key, past_value, scale=scale, softcap=softcap)
    return op.Attention(query, key, value, seen, past_key, past_value, scale=scale)


def translation_table() -> dict[Any, Any]:
    """The `custom_translation_table` of `torch.onnx.export` for both operators."""
    ops = torch.ops.deltallm_onnx
    return {ops.visible.default: _visible_onnx, ops.attention.default: _attention_onnx}
