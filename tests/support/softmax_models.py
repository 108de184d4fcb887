"""Attention written as MatMul, Softmax and MatMul around a cache of Concats, in every spelling that exporters use.

Sizes and names are those of `support.attention_models`, whose `random_feeds` and `runner` serve these models too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from support.attention_models import (
    FLOAT,
    HEAD_SIZE,
    INT64,
    KV_HEADS,
    QUERY_HEADS,
    GraphBuilder,
    Mask,
    exporter_mask,
    key_positions,
    query_positions,
)

GROUP = QUERY_HEADS // KV_HEADS
LOWEST = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How a layer is written; the defaults are torch's decomposition of scaled dot product attention.

    Attributes:
        number: what q·k is multiplied by.
        scale: where: "query", "key", "both" (its root), "scores", "divided" (scores by its inverse), "computed" (roots
            on both sides, from the query's shape), "capped" (query, by number / softcap, in place of the cap's
            division), "past Concat" (keys, before they are cached), "after the mask" or "none".
        heads: how keys and values meet query heads: "expand" (Unsqueeze, Expand, Reshape), "tile" (Unsqueeze, Tile,
            Reshape), "tiled" (all heads one after the other), "none".
        kv_heads: Hkv.
        swap: how keys are transposed: "transpose", "reshaped" (over three axes), "none".
        mask: how it hides: "bias" (Where(mask, 0, hidden) added), "where" (Where(mask, scores, hidden)), "where not"
            (Where(not mask, hidden, scores)), "none".
        hidden: the number that hides.
        seen: builds the boolean mask.
        bias: whether slopes·(j − i), as in ALiBi, are added to the scores: "" for not, "head" [1,Hq,1,T], "full"
            [1,Hq,S,T], "three axes" [Hq,1,T]; with `joined`, "joined" [B·Hq,1,T].
        operator: whether a standard Attention node without past stands for the products and the Softmax.
        softcap: of the scores; 0 for none.
        guard: whether rows of NaN become 0.
        joined: whether batch and heads share an axis in the products, as torch.bmm wants it.
        opset: of the standard operators.
        layers: how many.
        dtype: of queries, keys, values and caches.
        changed: edits the finished graph, to plant a fault.
    """

    number: float = 0.37
    scale: str = "both"
    heads: str = "expand"
    kv_heads: int = KV_HEADS
    swap: str = "transpose"
    mask: str = "bias"
    hidden: float = -math.inf
    seen: Mask = dataclasses.field(default_factory=exporter_mask)
    bias: str = ""
    operator: bool = False
    softcap: float = 0.0
    guard: bool = True
    joined: bool = False
    opset: int = 18
    layers: int = 1
    dtype: int = FLOAT
    changed: Callable[[GraphBuilder], None] | None = None

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return QUERY_HEADS // self.kv_heads


def softmax_model(spelling: Spelling) -> onnx.ModelProto:
    """Layers side by side, with inputs query.N, key.N, value.N [B,S,H·D] and output output.N [B,S,Hq·D]."""
    g = GraphBuilder(spelling.opset)
    g.input("input_ids", INT64, ["batch", "sequence"])
    g.input("attention_mask", INT64, ["batch", "total"])
    seen = spelling.seen(g) if spelling.mask != "none" else ""
    for layer in range(spelling.layers):
        _add_layer(g, layer, seen, spelling)
    if spelling.changed:
        spelling.changed(g)
    return g.build()


def float_constant(g: GraphBuilder, number: float, shape: tuple[int, ...] = ()) -> str:
    """A float32 initializer that is the same everywhere."""
    return g.constant(np.full(shape, number), np.float32)


def _add_layer(g: GraphBuilder, layer: int, seen: str, s: Spelling) -> None:
    query = _by_head(g, layer, "query", QUERY_HEADS, s)
    presents = {}
    for name in ("key", "value"):
        new = _by_head(g, layer, name, s.kv_heads, s)
        if s.scale == "past Concat" and name == "key":
            new = g.node("Mul", new, float_constant(g, s.number))
        shape: list[Any] = ["batch", s.kv_heads, "past", HEAD_SIZE]
        past = g.input(f"past_key_values.{layer}.{name}", s.dtype, shape)
        presents[name] = g.node("Concat", past, new, axis=-2, output=f"present.{layer}.{name}")
    key, value = (_repeated(g, presents[name], s) for name in ("key", "value"))
    if s.operator:
        attended = _operator(g, layer, [query, key, value, seen], s)
    else:
        attended = _products(g, layer, [query, key, value, seen], s)
    g.node("Reshape", g.node("Transpose", attended, perm=[0, 2, 1, 3]), [0, 0, -1], output=f"output.{layer}")
    g.output(f"output.{layer}", s.dtype, ["batch", "sequence", QUERY_HEADS * HEAD_SIZE])
    for name in ("key", "value"):
        g.output(f"present.{layer}.{name}", s.dtype, ["batch", s.kv_heads, "total", HEAD_SIZE])


def _operator(g: GraphBuilder, layer: int, operands: list[str], s: Spelling) -> str:
    *tensors, seen = operands
    if s.mask == "bias":
        seen = g.node("Where", seen, float_constant(g, 0.0), float_constant(g, s.hidden))
    inputs = [*tensors, seen] if seen else tensors
    return g.node("Attention", *inputs, output=f"attended.{layer}", scale=s.number, softcap=s.softcap)


def _products(g: GraphBuilder, layer: int, operands: list[str], s: Spelling) -> str:
    query, key, value, seen = operands
    key = _swapped(g, key, s)
    if s.joined:
        query, key, value = (_joined(g, tensor) for tensor in (query, key, value))
    query, key = _scaled_operands(g, query, key, s)
    scores = g.node("MatMul", query, key, output=f"scores.{layer}")
    scores = _scaled_scores(g, scores, s)
    if s.bias == "joined":
        scores = _biased(g, scores, s)
    if s.joined:
        scores = _parted(g, scores)
    if s.bias != "joined":
        scores = _biased(g, scores, s)
    scores = _masked(g, scores, seen, s)
    if s.scale == "after the mask":
        scores = g.node("Mul", scores, float_constant(g, s.number))
    probabilities = g.node("Softmax", scores, axis=-1, output=f"probabilities.{layer}")
    if s.guard:
        zero = float_constant(g, 0.0)
        probabilities = g.node("Where", g.node("IsNaN", probabilities), zero, probabilities)
    if s.joined:
        probabilities = _joined(g, probabilities)
    attended = g.node("MatMul", probabilities, value, output=f"attended.{layer}")
    return g.node("Reshape", attended, _shape(g, "input_ids"), output=f"parted.{layer}") if s.joined else attended


def _biased(g: GraphBuilder, scores: str, s: Spelling) -> str:
    """Six slopes times key positions, for "full" less query positions; a softmax does not notice what a row shares."""
    if not s.bias:
        return scores
    positions = key_positions(g)
    if s.bias == "full":
        positions = g.node("Sub", positions, query_positions(g))
    slopes = g.constant(np.array([0.5, 0.4, 0.3, 0.2, 0.1, -0.1]).reshape(6, 1, 1), np.float32)
    bias = g.node("Mul", slopes, g.node("Cast", positions, to=FLOAT))
    if s.bias in ("head", "full"):
        bias = g.node("Unsqueeze", bias, [0])
    if s.bias == "joined":
        batch = g.node("Shape", "input_ids", start=0, end=1)
        shape = g.node("Concat", batch, g.constant([1, 1, 1]), axis=0)
        wide = g.node("Expand", g.node("Unsqueeze", bias, [0]), shape)
        bias = g.node("Reshape", wide, g.node("Concat", g.constant([-1, 1]), g.node("Shape", bias, start=2), axis=0))
    return g.node("Add", scores, bias)


def _shape(g: GraphBuilder, value: str) -> str:
    """[B, Hq, S, D] as a list."""
    batch, new = (g.node("Shape", value, start=axis, end=axis + 1) for axis in (0, 1))
    return g.node("Concat", batch, g.constant([QUERY_HEADS]), new, g.constant([HEAD_SIZE]), axis=0)


def _by_head(g: GraphBuilder, layer: int, name: str, heads: int, s: Spelling) -> str:
    flat = g.input(f"{name}.{layer}", s.dtype, ["batch", "sequence", heads * HEAD_SIZE])
    split = g.node("Reshape", flat, [0, 0, heads, HEAD_SIZE])
    return g.node("Transpose", split, perm=[0, 2, 1, 3], output=f"{name}_heads.{layer}")


def _repeated(g: GraphBuilder, present: str, s: Spelling) -> str:
    if s.heads == "none":
        return present
    batch, total = (g.node("Shape", present, start=axis, end=axis + 1) for axis in (0, 2))
    heads, group, size = ([n] for n in (s.kv_heads, s.group, HEAD_SIZE))
    place = 1 if s.heads == "tiled" else 2
    wide = g.node("Unsqueeze", present, [place])
    if s.heads == "tile":
        wide = g.node("Tile", wide, [1, 1, s.group, 1, 1])
    else:
        middle = [group, heads] if s.heads == "tiled" else [heads, group]
        target = g.node("Concat", batch, *(g.constant(n) for n in middle), total, g.constant(size), axis=0)
        wide = g.node("Expand", wide, target)
    target = g.node("Concat", batch, g.constant([QUERY_HEADS]), total, g.constant(size), axis=0)
    return g.node("Reshape", wide, target)


def _swapped(g: GraphBuilder, key: str, s: Spelling) -> str:
    if s.swap == "none":
        return key
    if s.swap == "transpose":
        return g.node("Transpose", key, perm=[0, 1, 3, 2])
    shape = g.node("Shape", key)
    last, before = g.node("Slice", shape, [-1], [2**63 - 1]), g.node("Slice", shape, [-2], [-1])
    leading = g.node("Slice", shape, [-(2**63)], [-2])
    flat = g.node("Reshape", key, g.node("Concat", g.constant([-1]), before, last, axis=0))
    turned = g.node("Transpose", flat, perm=[0, 2, 1])
    return g.node("Reshape", turned, g.node("Concat", leading, last, before, axis=0))


def _joined(g: GraphBuilder, tensor: str) -> str:
    """[B, H, ., .] → [B·H, ., .]."""
    tail = g.node("Shape", tensor, start=2)
    return g.node("Reshape", tensor, g.node("Concat", g.constant([-1]), tail, axis=0))


def _parted(g: GraphBuilder, scores: str) -> str:
    """[B·Hq, S, T] → [B, Hq, S, T]."""
    batch, tail = g.node("Shape", "input_ids", start=0, end=1), g.node("Shape", scores, start=1)
    return g.node("Reshape", scores, g.node("Concat", batch, g.constant([QUERY_HEADS]), tail, axis=0))


def _scaled_operands(g: GraphBuilder, query: str, key: str, s: Spelling) -> tuple[str, str]:
    if s.scale == "query":
        return g.node("Mul", query, float_constant(g, s.number, (1,))), key
    if s.scale == "capped":
        return g.node("Mul", query, float_constant(g, s.number / s.softcap)), key
    if s.scale == "key":
        return query, g.node("Mul", float_constant(g, s.number, (1, 1, 1)), key)
    if s.scale == "both":
        root = float_constant(g, math.sqrt(s.number))
        return g.node("Mul", query, root), g.node("Mul", key, root)
    if s.scale == "computed":
        size = g.node("Cast", g.node("Slice", g.node("Shape", query), [-1], [2**31]), to=FLOAT)
        root = g.node("Sqrt", g.node("Div", float_constant(g, 1.0), g.node("Sqrt", size)))
        return g.node("Mul", query, root), g.node("Mul", key, root)
    return query, key


def _scaled_scores(g: GraphBuilder, scores: str, s: Spelling) -> str:
    if s.scale == "scores":
        scores = g.node("Mul", scores, float_constant(g, s.number))
    if s.scale == "divided":
        scores = g.node("Div", scores, float_constant(g, 1 / s.number))
    if s.softcap:
        cap = float_constant(g, s.softcap)
        divided = scores if s.scale == "capped" else g.node("Div", scores, cap)
        scores = g.node("Mul", g.node("Tanh", divided), cap)
    return scores


def _masked(g: GraphBuilder, scores: str, seen: str, s: Spelling) -> str:
    hidden = float_constant(g, s.hidden)
    if s.mask == "bias":
        return g.node("Add", scores, g.node("Where", seen, float_constant(g, 0.0), hidden))
    if s.mask == "where":
        return g.node("Where", seen, scores, hidden)
    if s.mask == "where not":
        return g.node("Where", g.node("Not", seen), hidden, scores)
    return scores
