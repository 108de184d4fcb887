"""Match a standard ONNX `Attention` node whose cache is kept outside, as torch.onnx.export writes it from opset 23."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.cache_concat import BATCH, CHANNEL, TOKEN, cache_behind, check_readers, read_cache
from deltallm_onnx.passes.cache_site import CachedAttention, cached_site, count_heads
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.match_attention import check_operator, scale_and_softcap
from deltallm_onnx.passes.score_masks import Mask
from deltallm_onnx.passes.site import AttentionSite, NotUnderstood

_MASK, _PAST_KEY, _NONPAD = 3, 4, 6


def keeps_cache_outside(node: ir.Node) -> bool:
    """Whether an Attention node has no past and its keys come from a cache."""
    inputs = [*node.inputs, *[None] * (_NONPAD + 1)]
    return inputs[_PAST_KEY] is None and inputs[_NONPAD] is None and cache_behind(inputs[1]) is not None


def match_attention_without_past(node: ir.Node, layer: int, opset: int, interpreter: MaskInterpreter) -> AttentionSite:
    """Understand one node.

    Matched (S new tokens, P past tokens, T = P + S):

        past_key ─┬─ Concat ─▶ present_key ─▶ (repeat heads) ──────┐
        key ──────┘                                                │
        query [B,Hq,S,D] ────────────────────────────────────▶ Attention(scale, softcap) ─▶ output [B,Hq,S,D]
        mask [B|1,1,S,T] ─────────────────────────────────────────▲│
        past_value ─┬─ Concat ─▶ present_value ─▶ (repeat heads) ──┘
        value ──────┘

    Args:
        node: an Attention node of the main graph, see `keeps_cache_outside`.
        layer: its number.
        opset: the model's version of the standard operators.
        interpreter: evaluates masks and lengths; one instance serves all layers.

    Raises:
        NotUnderstood: with the reason.
    """
    check_operator(node, opset)
    query, keys, values = (
        cache_match.required(value, name)
        for value, name in zip(node.inputs[:3], ("query", "key", "value"), strict=True)
    )
    if cache_match.rank(query, "query") != 4:
        raise NotUnderstood(
            f"its query has {cache_match.rank(query, 'query')} axes, which is not understood with a cache outside"
        )
    if cache_match.int_attribute(node, "is_causal", 0):
        raise NotUnderstood(
            "its is_causal is 1 although its keys begin with a past: query i of the new ones then sees keys j ≤ i of "
            "all, which is causality only where nothing is past; export the model with an attention mask"
        )
    key, value = read_cache(keys, "key", interpreter), read_cache(values, "value", interpreter)
    check_readers(key, "key", node)
    check_readers(value, "value", node)
    for what, read in (("key", key), ("value", value)):
        if len(read.axes.order) != 4 or read.axes.order[0] != (BATCH,) or read.axes.order[2:] != ((TOKEN,), (CHANNEL,)):
            raise NotUnderstood(f"its {what} is {read.axes}, not [batch, heads, token, channel]")
    if value.scale != 1:
        raise NotUnderstood(f"its values are multiplied by {value.scale:g}")
    heads = count_heads(query, key, value)
    scale, softcap = scale_and_softcap(node, heads.head_size)
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    masks = [Mask(mask)] if mask is not None else []
    found = CachedAttention(
        query=query,
        key=key,
        value=value,
        output=node.outputs[0],
        heads=heads,
        scale=scale * key.scale,
        softcap=softcap,
        masks=masks,
    )
    return cached_site(node, layer, found, interpreter)
