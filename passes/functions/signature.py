"""What a function body must be built for: a body cannot ask which inputs its caller passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.functions.body import ATTRIBUTES

#: DeltaAttention's inputs by position (docs/spec.md section 7).
INPUTS = (
    "query",
    "key",
    "value",
    "past_key",
    "past_value",
    "seqlens_k",
    "total_sequence_length",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "attention_bias",
    "head_sink",
    "k_scale",
    "v_scale",
    "q_norm_weight",
    "k_norm_weight",
    "threshold",
    "row_weight",
    "attention_mask",
)
NOT_BUILT = ("k_scale", "v_scale", "q_norm_weight", "k_norm_weight")
OUTPUTS = ("output", "present_key", "present_value", "statistics")

#: Fields that one function cannot serve with two values.
MUST_AGREE = (
    "passed",
    "granularity",
    "row_rule",
    "prefill",
    "cache_format",
    "do_rotary",
    "rotary_interleaved",
    "statistics",
)


@dataclasses.dataclass(frozen=True)
class Signature:
    """One way to call DeltaAttention. All nodes of a model must call it the same way, as there is one function.

    Numeric attributes (heads, scale, windows, …) are not part of it: every node keeps its own.

    Attributes:
        passed: names of the inputs that are passed.
        granularity: "element" or "row".
        row_rule: "relative" or "absolute"; "relative" with element granularity, which does not read it.
        prefill: "exact" or "delta".
        cache_format: "float32" or "float16"; packed formats have no fallback.
        do_rotary: whether queries and keys are rotated.
        rotary_interleaved: how channel pairs lie; False without rotary.
        softcap: whether any node has one.
        v_skip: whether any node skips values.
        statistics: whether the nodes have the fourth output: ONNX Runtime takes no fewer than a function declares.
    """

    passed: frozenset[str]
    granularity: str = "element"
    row_rule: str = "relative"
    prefill: str = "delta"
    cache_format: str = "float32"
    do_rotary: bool = False
    rotary_interleaved: bool = False
    softcap: bool = False
    v_skip: bool = False
    statistics: bool = False

    def __post_init__(self) -> None:
        for name in NOT_BUILT:
            if name in self.passed:
                raise DeltaLLMError(f"A DeltaAttention node passes {name}, which this version cannot use: remove it.")
        needed = {"query", "threshold"} | ({"total_sequence_length"} if "seqlens_k" in self.passed else set())
        needed |= {"cos_cache", "sin_cache"} if self.do_rotary else set()
        for one, other in (("key", "value"), ("past_key", "past_value")):
            needed |= {one, other} if self.passed & {one, other} else set()
        missing = [name for name in INPUTS if name in needed - self.passed]
        if missing:
            raise DeltaLLMError(f"A DeltaAttention node passes no {missing[0]}: connect that input.")

    @classmethod
    def of(cls, nodes: Iterable[ir.Node]) -> Signature:
        """The signature shared by DeltaAttention nodes.

        Raises:
            DeltaLLMError: if there is no node, if two nodes call differently, or if a call cannot be built.
        """
        nodes = list(nodes)
        if not nodes:
            raise DeltaLLMError("There is no DeltaAttention node to write a fallback for: convert a layer first.")
        all_of = [cls._of_one(node) for node in nodes]
        first = all_of[0]
        for node, other in zip(nodes, all_of, strict=True):
            for field in MUST_AGREE:
                a, b = getattr(first, field), getattr(other, field)
                if a != b:
                    raise DeltaLLMError(
                        f"The attention nodes {nodes[0].name!r} and {node.name!r} differ in {_told(field, a, b)}: "
                        "one model has one fallback function, so all its layers must agree there."
                    )
        return dataclasses.replace(
            first,
            softcap=any(one.softcap for one in all_of),
            v_skip=any(one.v_skip for one in all_of),
        )

    @classmethod
    def _of_one(cls, node: ir.Node) -> Signature:
        values = attribute_values(node)
        passed = frozenset(name for name, value in zip(INPUTS, node.inputs, strict=False) if value is not None)
        return cls(
            passed=passed,
            granularity=values["granularity"],
            row_rule=values["row_rule"] if values["granularity"] == "row" else "relative",
            prefill=values["prefill"],
            cache_format=values["cache_format"],
            do_rotary=bool(values["do_rotary"]),
            rotary_interleaved=bool(values["do_rotary"] and values["rotary_interleaved"]),
            softcap=values["softcap"] != 0,
            v_skip=values["v_skip"] != 0,
            statistics=len(node.outputs) > OUTPUTS.index("statistics"),
        )


def attribute_values(node: ir.Node) -> dict[str, Any]:
    """Every attribute of a DeltaAttention node, defaults filled in.

    Raises:
        DeltaLLMError: if the node lacks an attribute that has no default.
    """
    values = {}
    for name, (_, default) in ATTRIBUTES.items():
        given = node.attributes.get(name)
        values[name] = default if given is None else given.value
        if values[name] is None:
            raise DeltaLLMError(f"The attention node {node.name!r} has no attribute {name}: give it one.")
    return values


def _told(field: str, a: Any, b: Any) -> str:
    if field == "passed":
        return f"whether they pass {', '.join(sorted(a ^ b))}"
    return f"{field} ({a} and {b})"
