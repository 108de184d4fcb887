"""Match one `com.microsoft.GroupQueryAttention` node, as onnxruntime-genai's model builder writes it."""

from __future__ import annotations

import math

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.functions.signature import INPUTS
from deltallm_onnx.passes.site import AttentionSite, MaskMeaning, NotUnderstood, Rotary, SequenceLengths

DOMAIN, OP_TYPE = "com.microsoft", "GroupQueryAttention"

#: DeltaAttention begins with the same inputs in the same order (docs/spec.md section 7).
_INPUTS = INPUTS[: INPUTS.index("head_sink") + 1]
#: Attributes that DeltaAttention has too.
_CARRIED = (
    "num_heads",
    "kv_num_heads",
    "scale",
    "softcap",
    "local_window_size",
    "do_rotary",
    "rotary_interleaved",
)
#: Attributes that change nothing as long as they have these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "causal": (1,),
    "smooth_softmax": (0,),
    "qk_output": (0,),
    "sliding_window_cache": (0,),
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
    "kv_cache_bit_width": (0, 16, 32),
}
#: Attributes that only speak about inputs that are declined.
_IDLE = ("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon")


def match_group_query_attention(node: ir.Node, layer: int) -> AttentionSite:
    """Understand one node; DeltaAttention takes its first twelve inputs in the same places.

    Matched (S new tokens, P past tokens, T = P + S):

        query [B,S,Hq·D], key, value [B,S,Hkv·D] ───┐   (or packed in query)
        past_key, past_value [B,Hkv,P,D] ───────────┤   (graph inputs)
        seqlens_k, total_sequence_length ───────────┼─▶ GroupQueryAttention ─▶ output [B,S,Hq·D]
        cos_cache, sin_cache, position_ids ─────────┤                        ─▶ present_key, present_value
        attention_bias, head_sink ──────────────────┘                          (graph outputs)

    Args:
        node: a GroupQueryAttention node of the main graph.
        layer: its number.

    Raises:
        NotUnderstood: with the reason.
    """
    _check_operator(node)
    given = dict(zip(_INPUTS, [*node.inputs, *[None] * len(_INPUTS)], strict=False))
    query, past_key, past_value = (
        cache_match.required(given[name], name) for name in ("query", "past_key", "past_value")
    )
    present_key, present_value = cache_match.present_outputs(node)
    cache_match.check_cache(node, past_key, present_key, "key")
    cache_match.check_cache(node, past_value, present_value, "value")
    num_heads, kv_num_heads, head_size = _geometry(node, given, past_key, past_value)
    scale, softcap = _scale_and_softcap(node, head_size)
    window = cache_match.int_attribute(node, "local_window_size", -1)
    if window == 0:
        raise NotUnderstood("its local_window_size is 0, so a query sees nothing")
    return AttentionSite(
        layer=layer,
        node=node,
        query=query,
        key=given["key"],
        value=given["value"],
        past_key=past_key,
        past_value=past_value,
        present_key=present_key,
        present_value=present_value,
        output=node.outputs[0],
        heads_first=False,
        num_heads=num_heads,
        kv_num_heads=kv_num_heads,
        head_size=head_size,
        scale=scale,
        softcap=softcap,
        mask=MaskMeaning(causal=True, sliding_window=window if window > 0 else None, padding=None),
        lengths=SequenceLengths(
            cache_match.required(given["seqlens_k"], "seqlens_k"),
            cache_match.required(given["total_sequence_length"], "total_sequence_length"),
        ),
        rotary=_rotary(node, given),
        attention_bias=given["attention_bias"],
        head_sink=given["head_sink"],
    )


def _check_operator(node: ir.Node) -> None:
    for name, attribute in node.attributes.items():
        if name in _CARRIED or name in _IDLE:
            continue
        if not any(attribute.value == neutral for neutral in _NEUTRAL.get(name, ())):
            raise NotUnderstood(f"its attribute {name} is {attribute.value!r}, which DeltaAttention does not have")
    for index, value in enumerate(node.inputs[len(_INPUTS) :], start=len(_INPUTS)):
        if value is not None:
            raise NotUnderstood(f"it has the input {value.name!r} (number {index}), which DeltaAttention does not take")
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise NotUnderstood("its output_qk is used, and DeltaAttention does not form all scores")


def _geometry(
    node: ir.Node, given: dict[str, ir.Value | None], past_key: ir.Value, past_value: ir.Value
) -> tuple[int, int, int]:
    """Hq, Hkv and D."""
    num_heads, declared = (cache_match.int_attribute(node, name, 0) for name in ("num_heads", "kv_num_heads"))
    kv_num_heads, head_size = cache_match.cache_sizes(past_key, past_value)
    if declared != kv_num_heads:
        raise NotUnderstood(f"its kv_num_heads is {declared}, and its past_key has {kv_num_heads} heads")
    cache_match.check_heads(num_heads, kv_num_heads, head_size)
    key, value = given["key"], given["value"]
    if (key is None) != (value is None):
        raise NotUnderstood("it has a key or a value, but not both")
    packed = num_heads + 2 * kv_num_heads if key is None else num_heads
    for name, heads in (("query", packed), ("key", kv_num_heads), ("value", kv_num_heads)):
        tensor = given[name]
        if tensor is not None:
            cache_match.check_tensor(name, tensor, {2: heads * head_size})
    return num_heads, kv_num_heads, head_size


def _scale_and_softcap(node: ir.Node, head_size: int) -> tuple[float, float]:
    """A scale of 0 is GroupQueryAttention's way to say 1/√D."""
    scale, softcap = (cache_match.float_attribute(node, name, 0.0) for name in ("scale", "softcap"))
    if softcap < 0:
        raise NotUnderstood(f"its softcap is {softcap:g}")
    return scale or 1 / math.sqrt(head_size), softcap


def _rotary(node: ir.Node, given: dict[str, ir.Value | None]) -> Rotary | None:
    if not cache_match.int_attribute(node, "do_rotary", 0):
        return None
    return Rotary(
        cache_match.required(given["cos_cache"], "cos_cache"),
        cache_match.required(given["sin_cache"], "sin_cache"),
        given["position_ids"],
        bool(cache_match.int_attribute(node, "rotary_interleaved", 0)),
    )
