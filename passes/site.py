"""One picture of an attention layer, whatever wrote the graph, and one of a layer that was declined."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir


class NotUnderstood(Exception):  # noqa: N818 - not an error: why a layer stays as it is
    """Why a matcher declines, as a clause with the values at fault: "its mask …"."""


@dataclasses.dataclass(frozen=True)
class MaskMeaning:
    """What an attention mask was proven to mean.

    Attributes:
        causal: query i sees no key j > i, both counted from the first past token.
        sliding_window: query i sees only keys j > i − sliding_window; None where there is no window.
        padding: the graph input [B, T] that is 1 for real tokens and 0 for padding; None where there is none.
    """

    causal: bool
    sliding_window: int | None
    padding: ir.Value | None


@dataclasses.dataclass(frozen=True)
class SequenceLengths:
    """How GroupQueryAttention says how many tokens a row of the batch has.

    Attributes:
        last_index: int32 [B], valid tokens − 1 (`seqlens_k`).
        total: int32 scalar, the largest number of valid tokens (`total_sequence_length`).
    """

    last_index: ir.Value
    total: ir.Value


@dataclasses.dataclass(frozen=True)
class Rotary:
    """A rotary embedding inside the attention operator.

    Attributes:
        cos: [positions, D/2].
        sin: [positions, D/2].
        position_ids: int64 [B, S]; None counts from a row's first token.
        interleaved: pairs are neighbouring channels instead of halves.
    """

    cos: ir.Value
    sin: ir.Value
    position_ids: ir.Value | None
    interleaved: bool


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One attention layer with its key/value cache.

    Letters: B batch, S new tokens, P past tokens, T = P + S, Hq query heads, Hkv key/value heads, D head size.

    Attributes:
        layer: number of the layer, from 0: the one in the name of its key cache, or its place in the graph.
        node: the node that stands for the attention: all of it, or the Softmax in its middle.
        query: [B, Hq, S, D], or [B, S, Hq·D] where `heads_first` is false, or packed with key and value
            [B, S, (Hq + 2·Hkv)·D] where those are None.
        key: [B, Hkv, S, D], or [B, S, Hkv·D]; after the rotary embedding unless `rotary` says how to do it.
        value: as `key`, without rotary embedding.
        past_key: graph input [B, Hkv, P, D].
        past_value: as `past_key`.
        present_key: graph output [B, Hkv, T, D].
        present_value: as `present_key`.
        output: [B, Hq, S, D], or [B, S, Hq·D].
        heads_first: whether query, key, value and output have the four-axis layout.
        num_heads: Hq.
        kv_num_heads: Hkv, a divisor of Hq.
        head_size: D, the same for keys and values.
        scale: multiplies q·k.
        softcap: c in c·tanh(scores / c), applied before the mask; 0 for none.
        mask: what hides keys from queries.
        lengths: valid tokens per row, where the operator is told; None where the mask tells.
        rotary: the embedding to apply to queries and keys; None where the graph has done it.
        attention_bias: added to the scores after the softcap, broadcast to [B, Hq, S, T].
        bias_is_joined: whether the bias is [B·Hq, S|1, T] instead, batch and heads on one axis.
        head_sink: [Hq], a score per head that takes part in the softmax without a value.
        form: how the graph writes the layer, as `match.find_layers` names it.
    """

    layer: int
    node: ir.Node
    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    output: ir.Value
    heads_first: bool
    num_heads: int
    kv_num_heads: int
    head_size: int
    scale: float
    softcap: float
    mask: MaskMeaning
    lengths: SequenceLengths | None = None
    rotary: Rotary | None = None
    attention_bias: ir.Value | None = None
    bias_is_joined: bool = False
    head_sink: ir.Value | None = None
    form: str = ""


@dataclasses.dataclass(frozen=True)
class Declined:
    """An attention layer that is left as it is.

    Attributes:
        layer: number of the layer, from 0: the one in the name of its key cache, or its place in the graph.
        node: the node's name, or "<op>#<layer>" where it has none.
        reason: why, with the values at fault, as a clause: "its mask …".
        form: how the graph writes the layer, as `match.find_layers` names it.
    """

    layer: int
    node: str
    reason: str
    form: str = ""
