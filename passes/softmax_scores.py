"""Read the scores of a decomposed attention: from the Softmax back to the product of queries and keys."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from deltallm_onnx.passes.constants import STANDARD_DOMAINS, constant_of
from deltallm_onnx.passes.limits import LONGEST_CHAIN
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import is_hiding
from deltallm_onnx.passes.scalar_scale import scale_factor
from deltallm_onnx.passes.score_masks import Mask
from deltallm_onnx.passes.site import NotUnderstood

#: Products that attention may be made of.
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum", "Gemm", "TransposeMatMul", "FusedGemm")
#: Operators between a Softmax and the product that makes it attention, also in forms that are not understood.
_ELEMENTWISE = (
    "Add", "Cast", "Clip", "Concat", "Div", "Expand", "Identity", "Max", "Min", "Mul", "Neg", "Reshape", "Slice",
    "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
#: What weights go through before they are multiplied with.
_OF_WEIGHTS = ("Cast", "DequantizeLinear", "Identity", "Mul", "Reshape", "Transpose", "Unsqueeze")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a Softmax is taken of.

    Attributes:
        product: the MatMul of queries and keys.
        scale: the product of the numbers it is multiplied by afterwards.
        softcap: c in c·tanh(scores / c); 0 for none.
        masks: the last one applied first.
        path: the nodes on the way, the last one first.
        helpers: nodes beside the way that compute on scores what their Softmax does not notice.
    """

    product: ir.Node
    scale: float
    softcap: float
    masks: tuple[Mask, ...]
    path: tuple[ir.Node, ...]
    helpers: tuple[ir.Node, ...] = ()


def read_scores(softmax: ir.Node, interpreter: MaskInterpreter) -> Scores:
    """Walk back from a Softmax over the last axis.

    Matched, in this order, each part optional:

        MatMul ▶ Mul or Div by numbers ▶ Div c ▶ Tanh ▶ Mul c ▶ Add(mask) or Where(mask, ., -inf), several ▶
        Sub(., ReduceMax(.)) ▶ Softmax

    with Reshape between three axes [B·Hq, S, T] and four [B, Hq, S, T], and Cast between float types.

    Raises:
        NotUnderstood: with the node at fault.
    """
    walk, value = _Walk(interpreter), softmax.inputs[0]
    for _ in range(LONGEST_CHAIN):
        node = None if value is None else value.producer()
        if value is None or node is None:
            raise NotUnderstood(f"its scores come from {value and value.name!r}")
        if node.domain not in STANDARD_DOMAINS:
            raise NotUnderstood(f"its scores are computed with {_describe(node)}")
        if node.op_type == "MatMul":
            return Scores(node, walk.scale, walk.softcap, tuple(walk.masks), tuple(walk.path), tuple(walk.helpers))
        value = walk.before(node)
    raise NotUnderstood(f"its scores are more than {LONGEST_CHAIN} nodes away from a product of queries and keys")


class _Walk:
    """What was met on the way back from a Softmax."""

    def __init__(self, interpreter: MaskInterpreter) -> None:
        self._interpreter = interpreter
        self.scale, self.softcap = 1.0, 0.0
        self.masks: list[Mask] = []
        self.path: list[ir.Node] = []
        self.helpers: list[ir.Node] = []

    def before(self, node: ir.Node) -> ir.Value | None:
        """The scores that a node changes, its change noted."""
        self.path.append(node)
        if node.op_type in ("Add", "Where"):
            return self._unmasked(node)
        if node.op_type in ("Mul", "Div", "Tanh"):
            return self._unscaled(node)
        if node.op_type in ("Identity", "Cast"):
            return _same_numbers(node)
        if node.op_type == "Sub":
            return self._unshifted(node)
        if node.op_type == "Reshape":
            return node.inputs[0]
        if node.op_type == "Concat":
            raise NotUnderstood(
                f"its scores get a column of their own by {_describe(node)}, as attention sinks do (gpt-oss): "
                "rewrite the folder of onnxruntime-genai's model builder instead"
            )
        raise NotUnderstood(f"its scores are computed with {_describe(node)}, which is not understood")

    def _unmasked(self, node: ir.Node) -> ir.Value:
        if self.softcap:
            raise NotUnderstood(f"its scores are capped after the mask of {_describe(node)}")
        scores, mask = _masked(node)
        self.masks.append(dataclasses.replace(mask, factor=self.scale))
        return scores

    def _unshifted(self, node: ir.Node) -> ir.Value | None:
        largest = _largest(node)
        if largest is None:
            raise NotUnderstood(f"its scores are computed with {_describe(node)}, which is not understood")
        if self.softcap or self.masks:
            # A Softmax does not notice what a whole row shares; a tanh does.
            raise NotUnderstood(f"its scores are shifted by {_describe(node)} before they are capped or masked")
        self.helpers.append(largest)
        return node.inputs[0]

    def _unscaled(self, node: ir.Node) -> ir.Value | None:
        capped = _softcap(node, self._interpreter)
        if capped is None:
            factor = scale_factor(node, self._interpreter)
            if factor is None:
                raise NotUnderstood(f"its scores are computed with {_describe(node)}, not with a number")
            self.scale *= factor[1]
            return factor[0]
        if self.softcap or self.scale != 1:
            raise NotUnderstood(f"its scores are scaled or capped again after {_describe(node)}")
        # c·tanh(x) caps c·x at c.
        tanh, self.softcap = capped
        self.scale = self.softcap
        self.path += [tanh] if tanh is not node else []
        return tanh.inputs[0]


def is_attention(softmax: ir.Node) -> bool:
    """Whether a Softmax is taken of a product of two activations.

    Routers of experts and samplers take it of a product with weights.
    """
    return softmax.inputs[0] is not None and _product_behind(softmax.inputs[0]) is not None


def key_operand(softmax: ir.Node) -> ir.Value | None:
    """The right operand of the product behind a Softmax, where there is one; proves nothing."""
    product = None if softmax.inputs[0] is None else _product_behind(softmax.inputs[0])
    return product.inputs[1] if product is not None and len(product.inputs) > 1 else None


def _product_behind(value: ir.Value) -> ir.Node | None:
    """A product of two activations from which a value is computed by operators on single elements."""
    open_values, seen = [value], {value}
    while open_values:
        node = open_values.pop().producer()
        if node is None:
            continue
        if node.op_type in _PRODUCTS:
            factors = [x for x in node.inputs[:2] if x is not None]
            if len(factors) == 2 and not any(_is_weight(x) for x in factors):
                return node
        elif node.op_type in _ELEMENTWISE and node.domain in STANDARD_DOMAINS:
            new = [x for x in node.inputs if x is not None and x not in seen]
            seen.update(new)
            open_values += new
    return None


def _is_weight(value: ir.Value) -> bool:
    """Whether a value is a constant, or computed from constants alone."""
    open_values, seen = [value], {value}
    while open_values:
        x = open_values.pop()
        if x.is_initializer() or constant_of(x) is not None:
            continue
        node = x.producer()
        if node is None or node.op_type not in _OF_WEIGHTS:
            return False
        new = [operand for operand in node.inputs if operand is not None and operand not in seen]
        seen.update(new)
        open_values += new
    return True


def _masked(node: ir.Node) -> tuple[ir.Value, Mask]:
    """Tell scores and mask apart."""
    operands = node.inputs if node.op_type == "Add" else node.inputs[1:]
    scores = [x for x in operands if x is not None and _product_behind(x) is not None]
    if len(scores) != 1 or len(operands) != 2:
        raise NotUnderstood(
            f"{_describe(node)} has {len(scores)} operands that come from a product of queries and keys"
        )
    rank = len(scores[0].shape) if scores[0].shape is not None else 4
    other = next((x for x in operands if x is not scores[0]), None)
    if other is None:
        raise NotUnderstood(f"{_describe(node)} takes the same scores twice")
    if node.op_type == "Add":
        return scores[0], Mask(other, rank)
    condition = node.inputs[0]
    if condition is None or not is_hiding(other):
        raise NotUnderstood(f"{_describe(node)} replaces scores by {other.name!r}, which does not hide them")
    constant = constant_of(other)
    if other.is_graph_input() or (constant is not None and constant.size != 1):
        raise NotUnderstood(f"{_describe(node)} replaces scores by {other.name!r}, which is not one fixed number")
    return scores[0], Mask(condition, rank, hides=node.inputs[2] is scores[0])


def _softcap(node: ir.Node, interpreter: MaskInterpreter) -> tuple[ir.Node, float] | None:
    """The Tanh and c of c·tanh(x)."""
    factor = scale_factor(node, interpreter)
    tanh = node if node.op_type == "Tanh" else None if factor is None else factor[0].producer()
    if tanh is None or tanh.op_type != "Tanh":
        return None
    cap = 1.0 if factor is None else factor[1]
    if cap <= 0:
        raise NotUnderstood(f"its scores are {cap:g}·tanh(scores), which is no softcap")
    return tanh, cap


def _largest(node: ir.Node) -> ir.Node | None:
    """The ReduceMax of a Sub that takes the largest score of a row from the row; None for any other Sub."""
    largest = None if node.inputs[1] is None else node.inputs[1].producer()
    if largest is None or largest.op_type != "ReduceMax" or largest.inputs[0] is not node.inputs[0]:
        return None
    kept = "keepdims" not in largest.attributes or largest.attributes["keepdims"].as_int() == 1
    if "axes" in largest.attributes:
        return largest if kept and list(largest.attributes["axes"].as_ints()) == [-1] else None
    constant = constant_of(largest.inputs[1] if len(largest.inputs) > 1 else None)
    return largest if kept and constant is not None and constant.numpy().reshape(-1).tolist() == [-1] else None


def _same_numbers(node: ir.Node) -> ir.Value | None:
    if node.op_type == "Cast" and node.attributes["to"].as_int() not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        raise NotUnderstood(f"its scores are turned into {ir.DataType(node.attributes['to'].as_int())}")
    return node.inputs[0]


def _describe(node: ir.Node) -> str:
    domain = "" if node.domain in STANDARD_DOMAINS else f"{node.domain}."
    return f"node {node.name or node.outputs[0].name!r} ({domain}{node.op_type})"
