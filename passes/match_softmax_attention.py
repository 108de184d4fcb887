"""Match attention that an exporter has written as MatMul, Softmax and MatMul around a cache of two Concats."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.affine import Affine
from deltallm_onnx.passes.axes import Axes, Axis, follow
from deltallm_onnx.passes.cache_concat import BATCH, CHANNEL, TOKEN, CacheRead, check_readers, read_cache
from deltallm_onnx.passes.cache_site import CachedAttention, Heads, cached_site, count_heads
from deltallm_onnx.passes.constants import STANDARD_DOMAINS, constant_of, holds_only
from deltallm_onnx.passes.limits import LONGEST_CHAIN
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.scalar_scale import scale_factor
from deltallm_onnx.passes.score_readers import check_score_readers
from deltallm_onnx.passes.site import AttentionSite, NotUnderstood
from deltallm_onnx.passes.softmax_scores import Scores, read_scores

DOMAIN, OP_TYPE = "", "Softmax"

#: Names of the axes of queries and scores, beside those of caches.
_QUERY_HEAD, _QUERY = "query_head", "query"
#: From this opset on a Softmax runs along one axis; before, along all from its axis (by default 1) to the last.
_OLDEST_SOFTMAX = 13


@dataclasses.dataclass(frozen=True)
class _Weighted:
    """What becomes of the probabilities.

    Attributes:
        product: the MatMul with the values.
        path: the nodes between Softmax and product, the first one first.
    """

    product: ir.Node
    path: tuple[ir.Node, ...]


def match_softmax_attention(node: ir.Node, layer: int, opset: int, interpreter: MaskInterpreter) -> AttentionSite:
    """Understand one Softmax and everything around it.

    Matched (S new tokens, P past tokens, T = P + S):

        past_key ─┬─ Concat ─▶ present_key ─▶ repeat heads, swap the last two axes ─┐
        key ──────┘                                                                 │
        query [B,Hq,S,D] ─────────────────────────────────────────────────────── MatMul
                                 scale (on either side or here), softcap, masks ◀───┘
                                                     Softmax ─▶ (NaN to 0) ─┐
        past_value ─┬─ Concat ─▶ present_value ─▶ repeat heads ──────────── MatMul ─▶ output [B,Hq,S,D]
        value ──────┘

    Args:
        node: a Softmax of the main graph, see `softmax_scores.is_attention`.
        layer: its number.
        opset: the model's version of the standard operators.
        interpreter: evaluates masks and lengths; one instance serves all layers.

    Raises:
        NotUnderstood: with the reason.
    """
    _check_axis(node, opset)
    scores, weighted = read_scores(node, interpreter), _follow_probabilities(node)
    left, right, values = scores.product.inputs[0], scores.product.inputs[1], weighted.product.inputs[1]
    if left is None or right is None or values is None:
        raise NotUnderstood("one of its products lacks an operand")
    key, value = read_cache(right, "key", interpreter), read_cache(values, "value", interpreter)
    check_readers(key, "key", scores.product)
    check_readers(value, "value", weighted.product)
    if value.scale != 1:
        raise NotUnderstood(f"its values are multiplied by {value.scale:g}")
    query = _peel_query(left, interpreter)
    heads = count_heads(query.tensor, key, value)
    forms = _Forms.of(interpreter.shape(query.tensor), heads, key, value)
    forms.check(query, key, value, interpreter)
    forms.check_probabilities(node, scores, weighted, interpreter)
    output = forms.output(weighted.product, interpreter)
    _check_path(node, scores, weighted, output)
    _check_casts((*scores.path, *weighted.path), query.tensor)
    found = CachedAttention(
        query=query.tensor,
        key=key,
        value=value,
        output=output,
        heads=heads,
        scale=query.scale * scores.scale * key.scale,
        softcap=scores.softcap,
        masks=scores.masks,
    )
    return cached_site(node, layer, found, interpreter)


@dataclasses.dataclass(frozen=True)
class _Query:
    """A query, and what happens to it before the product.

    Attributes:
        tensor: [B, Hq, S, D].
        scale: the product of the numbers it is multiplied by.
        reshapes: the Reshape nodes, the first one first.
    """

    tensor: ir.Value
    scale: float
    reshapes: tuple[ir.Node, ...]


@dataclasses.dataclass(frozen=True)
class _Forms:
    """How the tensors of one layer may lie when they are multiplied.

    Attributes:
        query: [B, Hq, S, D]; the output too.
        scores: [B, Hq, S, T].
        is_joined: whether batch and heads share the first of three axes.
    """

    query: Axes
    scores: Axes
    is_joined: bool

    @staticmethod
    def of(query: tuple[Affine, ...], heads: Heads, key: CacheRead, value: CacheRead) -> _Forms:
        rank = len(key.axes.order)
        if rank not in (3, 4) or rank != len(value.axes.order):
            raise NotUnderstood(f"it multiplies keys {key.axes} and values {value.axes}, not of 3 or 4 axes both")
        lengths = {
            BATCH: query[0],
            _QUERY_HEAD: Affine(heads.num_heads),
            _QUERY: query[2],
            CHANNEL: Affine(heads.head_size),
        }
        scores = {**lengths, TOKEN: key.axes.lengths[TOKEN]}
        del scores[CHANNEL]
        known = key.axes.known
        return _Forms(Axes.of(lengths, known), Axes.of(scores, known), is_joined=rank == 3)

    def check(self, query: _Query, key: CacheRead, value: CacheRead, interpreter: MaskInterpreter) -> None:
        """Queries meet keys channel by channel, and values token by token."""
        for what, read, last in (("key", key, ((CHANNEL,), (TOKEN,))), ("value", value, ((TOKEN,), (CHANNEL,)))):
            if read.axes.order[-2:] != last:
                raise NotUnderstood(
                    f"it multiplies its {what} as {read.axes}, where {last[0][0]} by {last[1][0]} is needed"
                )
        axes = self.query
        for node in query.reshapes:
            axes = follow(axes, node, interpreter)
        if axes.order != _joined(self.query, self.is_joined):
            raise NotUnderstood(f"it multiplies its query as {axes} and its key as {key.axes}")

    def check_probabilities(
        self, softmax: ir.Node, scores: Scores, weighted: _Weighted, interpreter: MaskInterpreter
    ) -> None:
        """Reshapes on the way from product to product only join batch and heads, or part them again."""
        axes = dataclasses.replace(self.scores, order=_joined(self.scores, self.is_joined))
        for node in (scores.product, *reversed(scores.path), softmax, *weighted.path):
            if node.op_type == "Reshape":
                axes = follow(axes, node, interpreter)
            if axes.order not in (_joined(self.scores, True), _joined(self.scores, False)):
                raise NotUnderstood(f"node {node.name!r} (Reshape) makes {axes} of its scores")
            # Shape nodes pass lengths on, and shape inference loses them where masks are added.
            _settle(node.outputs[0], axes, interpreter)
        if axes.order != _joined(self.scores, self.is_joined):
            raise NotUnderstood(f"it multiplies its probabilities as {axes} with values of another form")

    def output(self, product: ir.Node, interpreter: MaskInterpreter) -> ir.Value:
        """The tensor [B, Hq, S, D] behind the product with the values."""
        output = product.outputs[0]
        if not self.is_joined:
            return output
        readers = [node for node, _ in output.uses() if node.op_type != "Shape"]
        if len(readers) != 1 or readers[0].op_type != "Reshape" or output.is_graph_output():
            raise NotUnderstood(
                f"its output {output.name!r} is not simply reshaped to [batch, heads, tokens, channels]"
            )
        joined = dataclasses.replace(self.query, order=_joined(self.query, True))
        _settle(output, joined, interpreter)
        axes = follow(joined, readers[0], interpreter)
        if axes.order != self.query.order:
            raise NotUnderstood(f"its output {output.name!r} is reshaped to {axes}")
        return readers[0].outputs[0]


def _settle(value: ir.Value, axes: Axes, interpreter: MaskInterpreter) -> None:
    known = [length for axis in axes.order if (length := axes.length(axis)) is not None]
    if len(known) == len(axes.order):
        interpreter.settle_shape(value, tuple(known))


def _joined(axes: Axes, is_joined: bool) -> tuple[Axis, ...]:
    batch, heads, *rest = axes.order
    return ((*batch, *heads), *rest) if is_joined else axes.order


def _check_axis(node: ir.Node, opset: int) -> None:
    if opset < _OLDEST_SOFTMAX:
        raise NotUnderstood(
            f"its Softmax is of opset {opset}, where it may run along several axes at once: export the model with "
            f"opset {_OLDEST_SOFTMAX} or newer"
        )
    axis = cache_match.int_attribute(node, "axis", -1)
    scores = node.inputs[0]
    rank = None if scores is None or scores.shape is None else len(scores.shape)
    if axis != -1 and axis + 1 != rank:
        raise NotUnderstood(f"its Softmax runs along axis {axis} of {rank if rank is not None else 'unknown'} axes")


def _check_path(softmax: ir.Node, scores: Scores, weighted: _Weighted, output: ir.Value) -> None:
    """Scores and probabilities are for this attention alone."""
    made = [scores.product, *scores.path, *scores.helpers, softmax, *weighted.path]
    if output is not weighted.product.outputs[0]:
        made.append(weighted.product)
    own = {*made, weighted.product, output.producer()}
    check_score_readers([output for node in made for output in node.outputs], {node for node in own if node})


def _check_casts(path: Sequence[ir.Node], query: ir.Value) -> None:
    """DeltaAttention computes scores no less precisely than in the type of its query."""
    for node in path:
        if node.op_type == "Cast" and cache_match.narrows(node, query.dtype):
            raise NotUnderstood(
                f"its scores are rounded to {ir.DataType(node.attributes['to'].as_int())} by node "
                f"{node.name or node.outputs[0].name!r} (Cast), and its query is {query.dtype}"
            )


def _peel_query(value: ir.Value, interpreter: MaskInterpreter) -> _Query:
    """Walk back over numbers that scale the query, and over the Reshape that joins batch and heads."""
    scale = 1.0
    reshapes: list[ir.Node] = []
    for _ in range(LONGEST_CHAIN):
        node = value.producer()
        if node is None:
            break
        factor = scale_factor(node, interpreter)
        source = node.inputs[0]
        if factor is not None:
            value, number = factor
            scale *= number
        elif source is not None and node.op_type == "Identity":
            value = source
        elif source is not None and node.op_type == "Reshape" and value.shape is not None and len(value.shape) == 3:
            reshapes.append(node)
            value = source
        else:
            break
    if cache_match.rank(value, "query") != 4:
        raise NotUnderstood(f"its query {value.name!r} has {cache_match.rank(value, 'query')} axes, not 4")
    return _Query(value, scale, tuple(reversed(reshapes)))


def _follow_probabilities(softmax: ir.Node) -> _Weighted:
    """Walk from a Softmax to the one product that reads it."""
    value = softmax.outputs[0]
    path: list[ir.Node] = []
    for _ in range(LONGEST_CHAIN):
        if value.is_graph_output():
            raise NotUnderstood(
                f"its probabilities {value.name!r} are a graph output, and DeltaAttention does not form them"
            )
        guarded = _without_nan(value)
        if guarded is not None:
            path += guarded
            value = guarded[-1].outputs[0]
            continue
        readers = [(node, index) for node, index in value.uses() if node.op_type != "Shape"]
        if len(readers) != 1:
            who = ", ".join(sorted(f"{node.op_type} {node.name!r}" for node, _ in readers)) or "nobody"
            raise NotUnderstood(f"its probabilities {value.name!r} are read by {who}")
        node, index = readers[0]
        if node.op_type == "MatMul" and node.domain in STANDARD_DOMAINS and index == 0:
            return _Weighted(node, tuple(path))
        if index or node.domain not in STANDARD_DOMAINS or not _keeps_probabilities(node):
            raise NotUnderstood(
                f"its probabilities are changed by node {node.name or node.outputs[0].name!r} ({node.op_type})"
            )
        path.append(node)
        value = node.outputs[0]
    raise NotUnderstood(f"its values are more than {LONGEST_CHAIN} nodes away from its Softmax")


def _keeps_probabilities(node: ir.Node) -> bool:
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        return training is None or holds_only(training, 0)
    if node.op_type == "Cast":
        return node.attributes["to"].as_int() in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return node.op_type in ("Identity", "Reshape")


def _without_nan(value: ir.Value) -> list[ir.Node] | None:
    """IsNaN and Where of Where(IsNaN(p), 0, p), where p is read so: rows that see nothing give 0, as they should."""
    readers = [node for node, _ in value.uses() if node.op_type != "Shape"]
    nodes = {node.op_type: node for node in readers}
    if set(nodes) != {"IsNaN", "Where"} or len(readers) != 2:
        return None
    where, is_nan = nodes["Where"], nodes["IsNaN"].outputs[0]
    guards = where.inputs[0] is is_nan and where.inputs[2] is value and len(is_nan.uses()) == 1
    return [nodes["IsNaN"], where] if guards and _is_zero(where.inputs[1], value) else None


def _is_zero(value: ir.Value | None, tensor: ir.Value) -> bool:
    """Whether a value is one zero that gives a tensor no new axes."""
    zero = constant_of(value)
    axes = 0 if tensor.shape is None else len(tensor.shape)
    return holds_only(value, 0) and zero is not None and len(zero.shape) <= axes
