"""Make an attention site of tensors whose cache is kept outside the operator, by two Concats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.affine import Affine, dimension
from deltallm_onnx.passes.cache_concat import BATCH, TOKEN, CacheRead
from deltallm_onnx.passes.head_expansion import query_heads
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import MaskContract
from deltallm_onnx.passes.scalar_scale import exact_scale
from deltallm_onnx.passes.score_masks import Mask, read_masks
from deltallm_onnx.passes.site import AttentionSite, NotUnderstood


@dataclasses.dataclass(frozen=True)
class Heads:
    """Head counts and size of one layer."""

    num_heads: int
    kv_num_heads: int
    head_size: int


@dataclasses.dataclass(frozen=True)
class CachedAttention:
    """One layer, found but for what its masks mean.

    Attributes:
        query: [B, Hq, S, D].
        key: how keys come from their cache.
        value: how values come from theirs.
        output: [B, Hq, S, D].
        heads: from `count_heads`.
        scale: multiplies q·k.
        softcap: of the scores before the masks; 0 for none.
        masks: everything that hides keys or adds to scores.
    """

    query: ir.Value
    key: CacheRead
    value: CacheRead
    output: ir.Value
    heads: Heads
    scale: float
    softcap: float
    masks: Sequence[Mask]


def count_heads(query: ir.Value, key: CacheRead, value: CacheRead) -> Heads:
    """Hq, Hkv and D.

    Where the query's shape does not tell Hq, the repeated keys do: a product with so many heads takes no other number.

    Raises:
        NotUnderstood: where they are unknown, do not divide or were not repeated as DeltaAttention shares them.
    """
    kv_num_heads, head_size = cache_match.cache_sizes(key.past, value.past)
    repeated = {what: _repeated_heads(read, what) for what, read in (("key", key), ("value", value))}
    shape = query.shape
    declared = shape[1] if shape is not None and len(shape) == 4 else None
    num_heads = declared if isinstance(declared, int) else repeated["key"]
    if not isinstance(declared, int) and num_heads == 1:
        raise NotUnderstood(f"the heads of its query (axis 1 of {query.name!r}) are {declared}, not a fixed number")
    for what, count in repeated.items():
        if count not in (num_heads, kv_num_heads):
            raise NotUnderstood(f"its query has {num_heads} heads and its {what}, repeated for them, {count}")
    cache_match.check_heads(num_heads, kv_num_heads, head_size)
    return Heads(num_heads, kv_num_heads, head_size)


def cached_site(node: ir.Node, layer: int, found: CachedAttention, interpreter: MaskInterpreter) -> AttentionSite:
    """The site, if its masks are proven to be causality, optionally with a sliding window and padding.

    Args:
        node: stands for the layer.
        layer: its number.
        found: what it reads, computes and writes.
        interpreter: evaluates masks.

    Raises:
        NotUnderstood: with the reason.
    """
    query, key, value, heads = found.query, found.key, found.value, found.heads
    if found.scale == 0:
        raise NotUnderstood("its scale is 0")
    if key.past is value.past:
        raise NotUnderstood(f"it reads {key.past.name!r} as past key and as past value")
    _check_types(found)
    cache_match.check_batch(query, key.past)
    for name, tensor, count in (
        ("query", query, heads.num_heads),
        ("key", key.new, heads.kv_num_heads),
        ("value", value.new, heads.kv_num_heads),
    ):
        cache_match.check_tensor(name, tensor, {1: count, 3: heads.head_size})
        cache_match.check_new_tokens(name, tensor, query, 2)
    new_length = interpreter.shape(query)[2]
    totals = tuple(length for read in (key, value) for length in _total_lengths(read, interpreter))
    contract = MaskContract(dimension(key.past, 2), new_length, dimension(key.past, 0), heads.num_heads, totals)
    mask, bias = read_masks(found.masks, contract, interpreter)
    # The next layer's shapes go back to this one, and few of the nodes between query and output are followed.
    lengths = (dimension(key.past, 0), Affine(heads.num_heads), _named_tokens(found), Affine(heads.head_size))
    interpreter.settle_shape(found.output, lengths)
    return AttentionSite(
        layer=layer,
        node=node,
        query=query,
        key=key.new,
        value=value.new,
        past_key=key.past,
        past_value=value.past,
        present_key=key.present,
        present_value=value.present,
        output=found.output,
        heads_first=True,
        num_heads=heads.num_heads,
        kv_num_heads=heads.kv_num_heads,
        head_size=heads.head_size,
        scale=exact_scale(found.scale, heads.head_size),
        softcap=found.softcap,
        mask=mask,
        attention_bias=None if bias is None else bias.value,
        bias_is_joined=bias is not None and bias.is_joined,
    )


def _total_lengths(read: CacheRead, interpreter: MaskInterpreter) -> tuple[Affine, ...]:
    """T, by all the names that the graph has for the length of one present."""
    multiplied = read.path[-1].outputs[0] if read.path else read.present
    places = [(read.present, 2)]
    if (TOKEN,) in read.axes.order:
        places.append((multiplied, read.axes.order.index((TOKEN,))))
    found = [dimension(read.past, 2) + dimension(read.new, 2)]
    for value, axis in places:
        if value.shape is not None:
            found.append(dimension(value, axis))
            found.append(interpreter.shape(value)[axis])
    return tuple(found)


def _named_tokens(found: CachedAttention) -> Affine:
    """S, from the first of the new tensors whose shape names it; it is the same for all of them."""
    for tensor in (found.query, found.key.new, found.value.new):
        if tensor.shape is not None and cache_match.is_named(tensor.shape[2]):
            return dimension(tensor, 2)
    return dimension(found.query, 2)


def _repeated_heads(read: CacheRead, what: str) -> int:
    """The heads of keys or values as they are multiplied: on an axis of their own, or behind the batch."""
    leading = read.axes.order[:-2]
    if len(leading) == 2 and leading[0] == (BATCH,):
        return query_heads(read.axes, leading[1], what)
    if len(leading) == 1 and leading[0][:1] == (BATCH,):
        return query_heads(read.axes, leading[0][1:], what)
    raise NotUnderstood(f"its {what} is multiplied as {read.axes}, which is not [batch, heads, ...]")


def _check_types(found: CachedAttention) -> None:
    """DeltaAttention computes in the query's type and returns it."""
    types = {
        "query": found.query.dtype,
        "key": found.key.new.dtype,
        "value": found.value.new.dtype,
        "output": found.output.dtype,
    }
    if len(set(types.values())) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in types.items())
        raise NotUnderstood(f"its tensors are of different types ({listed})")
