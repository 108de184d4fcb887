"""Match one standard ONNX `Attention` node (opset 23 or 24)."""

from __future__ import annotations

import dataclasses
import math

import onnx
import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.affine import dimension
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import MaskContract
from deltallm_onnx.passes.score_masks import Mask, read_masks
from deltallm_onnx.passes.site import AttentionSite, NotUnderstood

DOMAIN, OP_TYPE = "", "Attention"

#: Versions of the operator whose meaning is known here.
_KNOWN_VERSIONS = (23, 24)
_INPUTS = ("query", "key", "value", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
_OPTIONAL = ("attn_mask", "nonpad_kv_seqlen")


@dataclasses.dataclass(frozen=True)
class _Geometry:
    """Head counts and sizes of one layer."""

    heads_first: bool
    num_heads: int
    kv_num_heads: int
    head_size: int


def match_attention(node: ir.Node, layer: int, opset: int, interpreter: MaskInterpreter) -> AttentionSite:
    """Understand one node.

    Matched (S new tokens, P past tokens, T = P + S; four-axis layout shown, [B, S, H·D] is matched too):

        query [B,Hq,S,D] ─────────────┐
        key, value [B,Hkv,S,D] ───────┤
        mask [B|1,1,S,T] ─────────────┼─▶ Attention(scale, softcap, is_causal) ─▶ output [B,Hq,S,D]
        past_key, past_value ─────────┘                                        ─▶ present_key, present_value [B,Hkv,T,D]
        (graph inputs [B,Hkv,P,D])                                                (graph outputs)

    where the mask, with is_causal, is proven to be causality, optionally with a sliding window and with padding from a
    graph input (see `masks`).

    Args:
        node: an Attention node of the main graph.
        layer: its number.
        opset: the model's version of the standard operators.
        interpreter: evaluates masks; one instance serves all layers.

    Raises:
        NotUnderstood: with the reason.
    """
    check_operator(node, opset)
    inputs = dict(zip(_INPUTS, [*node.inputs, *[None] * len(_INPUTS)], strict=False))
    tensors = {name: cache_match.required(inputs[name], name) for name in _INPUTS if name not in _OPTIONAL}
    if inputs["nonpad_kv_seqlen"] is not None:
        raise NotUnderstood("it takes nonpad_kv_seqlen: its cache is kept outside the operator")
    present_key, present_value = cache_match.present_outputs(node)
    cache_match.check_cache(node, tensors["past_key"], present_key, "key")
    cache_match.check_cache(node, tensors["past_value"], present_value, "value")
    geometry = _geometry(node, tensors)
    scale, softcap = scale_and_softcap(node, geometry.head_size)
    query_axis = 2 if geometry.heads_first else 1
    past = tensors["past_key"]
    contract = MaskContract(
        dimension(past, 2), dimension(tensors["query"], query_axis), dimension(past, 0), geometry.num_heads
    )
    masks = [] if inputs["attn_mask"] is None else [Mask(inputs["attn_mask"])]
    is_causal = bool(cache_match.int_attribute(node, "is_causal", 0))
    mask, bias = read_masks(masks, contract, interpreter, is_causal=is_causal)
    return AttentionSite(
        layer=layer,
        node=node,
        query=tensors["query"],
        key=tensors["key"],
        value=tensors["value"],
        past_key=tensors["past_key"],
        past_value=tensors["past_value"],
        present_key=present_key,
        present_value=present_value,
        output=node.outputs[0],
        heads_first=geometry.heads_first,
        num_heads=geometry.num_heads,
        kv_num_heads=geometry.kv_num_heads,
        head_size=geometry.head_size,
        scale=scale,
        softcap=softcap,
        mask=mask,
        attention_bias=None if bias is None else bias.value,
        bias_is_joined=bias is not None and bias.is_joined,
    )


def check_operator(node: ir.Node, opset: int) -> None:
    """Refuse versions of the operator, and uses of it, that DeltaAttention cannot stand for.

    Raises:
        NotUnderstood: saying which.
    """
    try:
        version = onnx.defs.get_schema(OP_TYPE, opset).since_version
    except onnx.defs.SchemaError as error:
        raise NotUnderstood(f"the model's opset {opset} has no Attention operator (23 and 24 do)") from error
    if version not in _KNOWN_VERSIONS:
        raise NotUnderstood(f"Attention of opset {version} is not known here (23 and 24 are)")
    precision = ir.DataType(cache_match.int_attribute(node, "softmax_precision", ir.DataType.FLOAT))
    if precision is not ir.DataType.FLOAT:
        raise NotUnderstood(f"its softmax_precision is {precision}; DeltaAttention computes the softmax in FLOAT")
    if len(node.outputs) > 3 and (node.outputs[3].uses() or node.outputs[3].is_graph_output()):
        raise NotUnderstood("its qk_matmul_output is used, and DeltaAttention does not form all scores")


def scale_and_softcap(node: ir.Node, head_size: int) -> tuple[float, float]:
    """The attributes, or 1/√D and 0.

    Raises:
        NotUnderstood: for values that are no scale and no softcap.
    """
    scale = cache_match.float_attribute(node, "scale", 1 / math.sqrt(head_size))
    softcap = cache_match.float_attribute(node, "softcap", 0.0)
    if scale == 0 or softcap < 0:
        raise NotUnderstood(f"its scale is {scale:g} and its softcap {softcap:g}")
    return scale, softcap


def _geometry(node: ir.Node, tensors: dict[str, ir.Value]) -> _Geometry:
    ranks = [cache_match.rank(tensors[name], name) for name in ("query", "key", "value")]
    if set(ranks) not in ({3}, {4}):
        raise NotUnderstood(f"its query, key and value have {', '.join(map(str, ranks))} axes, not 3 or 4 each")
    kv_num_heads, head_size = cache_match.cache_sizes(tensors["past_key"], tensors["past_value"])
    heads_first = ranks[0] == 4
    if heads_first:
        num_heads = cache_match.fixed_size(tensors["query"], 1, "the heads of its query")
    else:
        num_heads = _declared_heads(node, kv_num_heads)
    cache_match.check_heads(num_heads, kv_num_heads, head_size)
    for name, heads in (("query", num_heads), ("key", kv_num_heads), ("value", kv_num_heads)):
        sizes = {1: heads, 3: head_size} if heads_first else {2: heads * head_size}
        cache_match.check_tensor(name, tensors[name], sizes)
        cache_match.check_new_tokens(name, tensors[name], tensors["query"], 2 if heads_first else 1)
    return _Geometry(heads_first, num_heads, kv_num_heads, head_size)


def _declared_heads(node: ir.Node, kv_num_heads: int) -> int:
    """The attributes that flat inputs need."""
    num_heads, declared = (cache_match.int_attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads"))
    if num_heads <= 0:
        raise NotUnderstood("its query has 3 axes and the attribute q_num_heads is missing")
    if declared != kv_num_heads:
        raise NotUnderstood(f"its kv_num_heads is {declared}, and its past_key has {kv_num_heads} heads")
    return num_heads
