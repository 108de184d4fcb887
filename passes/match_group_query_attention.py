"""Match one `com.microsoft.GroupQueryAttention` node, as onnxruntime-genai's model builder writes it."""

from __future__ import annotations

import math

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.functions.signature import INPUTS, NOT_BUILT
from deltallm_onnx.passes.head_size import channels, head_size_of
from deltallm_onnx.passes.site import AttentionSite, MaskMeaning, NotUnderstood, Rotary, SequenceLengths

DOMAIN, OP_TYPE = "com.microsoft", "GroupQueryAttention"
#: Attribute: the caches of this layer have only room for its window, and rows move when they leave it.
WINDOWED_CACHE = "sliding_window_cache"

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
    "k_quant_type": ("NONE",),
    "v_quant_type": ("NONE",),
    "kv_cache_bit_width": (0, 16, 32),
}
#: Attributes that only speak about inputs that are declined, or that are checked on their own.
_IDLE = ("qk_norm_epsilon", "q_norm_epsilon", "k_norm_epsilon", WINDOWED_CACHE)
#: What to do about inputs and attributes that DeltaAttention does not have, by how they begin.
_REMEDIES = {
    ("k_scale", "v_scale", "k_quant_type", "v_quant_type", "kv_cache_bit_width"): (
        "rebuild the model without kv_cache_quant_scheme; cache_format stores packed keys and values instead"
    ),
    ("q_norm_weight", "k_norm_weight"): "rebuild the model for -e cpu, which writes these norms as nodes of their own",
}


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
    num_heads, kv_num_heads, head_size = _geometry(node, given)
    query, past_key, past_value = (
        cache_match.required(given[name], name) for name in ("query", "past_key", "past_value")
    )
    present_key, present_value = cache_match.present_outputs(node)
    cache_match.check_cache(node, past_key, present_key, "key")
    cache_match.check_cache(node, past_value, present_value, "value")
    _check_tensors(given, num_heads, kv_num_heads, head_size)
    scale, softcap = _scale_and_softcap(node, head_size)
    window = cache_match.int_attribute(node, "local_window_size", -1)
    if window == 0:
        raise NotUnderstood("its local_window_size is 0, so a query sees nothing")
    if cache_match.int_attribute(node, WINDOWED_CACHE, 0) and window < 0:
        raise NotUnderstood(f"its {WINDOWED_CACHE} is 1 but it has no local_window_size to say what stays in the cache")
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
            found = f"its attribute {name} is {attribute.value!r}, which DeltaAttention does not have"
            raise NotUnderstood(found + _remedy(name))
    for index, value in enumerate(node.inputs[len(_INPUTS) :], start=len(_INPUTS)):
        if value is not None:
            name = INPUTS[index] if INPUTS[index : index + 1] and INPUTS[index] in NOT_BUILT else f"number {index}"
            found = f"it has the input {value.name!r} ({name}), which DeltaAttention does not take"
            raise NotUnderstood(found + _remedy(name))
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise NotUnderstood("its output_qk is used, and DeltaAttention does not form all scores")


def _remedy(name: str) -> str:
    """What the builder of the model can do instead, as a clause; empty where nothing is known."""
    return next((f": {remedy}" for names, remedy in _REMEDIES.items() if name in names), "")


def _geometry(node: ir.Node, given: dict[str, ir.Value | None]) -> tuple[int, int, int]:
    """Hq, Hkv and D."""
    num_heads, kv_num_heads = (cache_match.int_attribute(node, name, 0) for name in ("num_heads", "kv_num_heads"))
    cache_match.check_heads(num_heads, kv_num_heads)
    for name in ("past_key", "past_value"):
        heads = cache_match.declared_heads(cache_match.required(given[name], name), name)
        if heads not in (None, kv_num_heads):
            raise NotUnderstood(f"its kv_num_heads is {kv_num_heads}, and its {name} has {heads} heads")
    if (given["key"] is None) != (given["value"] is None):
        raise NotUnderstood("it has a key or a value, but not both")
    return num_heads, kv_num_heads, head_size_of(node, given, num_heads, kv_num_heads)


def _check_tensors(given: dict[str, ir.Value | None], num_heads: int, kv_num_heads: int, head_size: int) -> None:
    packed = num_heads + 2 * kv_num_heads if given["key"] is None else num_heads
    for name, heads in (("query", packed), ("key", kv_num_heads), ("value", kv_num_heads)):
        tensor, past = given[name], given["past_key"]
        if tensor is None:
            continue
        # Quantised products are no standard operators, so shape inference ends at them. The operator itself takes
        # queries, keys, values and caches of one type.
        if tensor.dtype is None and past is not None:
            tensor.type = past.type
        if tensor.shape is None:
            tensor.shape = ir.Shape([None, None, heads * head_size])
        cache_match.check_tensor(name, tensor, {2: heads * head_size})
    # Tables that come out of an If have no shape; with a partial rotary embedding they have fewer columns.
    columns = channels(given["cos_cache"])
    if columns is not None and 2 * columns > head_size:
        raise NotUnderstood(f"its cos_cache rotates {2 * columns} channels of heads that have {head_size}")


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
