"""Random calls of DeltaThreshold and HybridWindowAttention."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st
from support.random_cases import key_rows
from support.single_op import graph_value, model

from deltallm_onnx.passes.functions import delta_threshold_function, hybrid_window_attention_function

OPSET = 21


@dataclasses.dataclass(frozen=True)
class SmallCase:
    """One call.

    Attributes:
        op_type: the operator.
        inputs: by name, in the operator's order; None is absent.
        attributes: by name.
        outputs: names.
    """

    op_type: str
    inputs: dict[str, np.ndarray | None]
    attributes: dict[str, Any]
    outputs: tuple[str, ...]

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.inputs.items() if array is not None}

    def model(self, functions: list[ir.Function]) -> bytes:
        """The operator alone, with function bodies for a run without the library."""
        values = [None if array is None else graph_value(name, array) for name, array in self.inputs.items()]
        while values[-1] is None:
            values.pop()
        node = ir.node(
            self.op_type,
            values,
            self.attributes,
            domain="ai.deltallm",
            num_outputs=len(self.outputs),
            name=self.op_type,
        )
        first = next(iter(self.feeds.values()))
        for output, name in zip(node.outputs, self.outputs, strict=True):
            output.name, output.dtype = name, ir.DataType.from_numpy(first.dtype)
            output.shape = ir.Shape([None] * first.ndim)
        return model([v for v in values if v is not None], node.outputs, [node], functions, opset_version=OPSET)

    def function_model(self) -> bytes:
        """The operator with its body."""
        given = {name for name, array in self.inputs.items() if array is not None}
        if self.op_type == "DeltaThreshold":
            function = delta_threshold_function(
                granularity=self.attributes["granularity"],
                row_rule=self.attributes["row_rule"],
                row_weight="row_weight" in given,
                transmit="transmit" in given,
                opset_version=OPSET,
            )
        else:
            function = hybrid_window_attention_function(
                prefill=self.attributes["prefill"],
                softcap=self.attributes["softcap"] != 0,
                v_skip=self.attributes["v_skip"] != 0,
                attention_bias="attention_bias" in given,
                head_sink="head_sink" in given,
                opset_version=OPSET,
            )
        return self.model([function])


@st.composite
def threshold_cases(draw: st.DrawFn) -> SmallCase:
    """A random DeltaThreshold call; sequences of length zero included."""
    B, Hkv, N, D = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 4), (0, 12), (1, 9)))
    granularity = draw(st.sampled_from(["element", "row"]))
    dtype = draw(st.sampled_from(["float32", "float16"]))
    per_channel = granularity == "element" and draw(st.booleans())
    weighted, forced = granularity == "row" and draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = key_rows(rng, (B, Hkv, N + 1, D), grid=draw(st.booleans())).astype(dtype)
    if draw(st.booleans()):
        rows[rng.random(rows.shape) < 0.05] = np.nan
    return SmallCase(
        "DeltaThreshold",
        {
            "key": rows[:, :, 1:],
            "reference": rows[:, :, 0],
            "threshold": rng.choice([0, 0.125, 0.25, 0.5], (Hkv, D) if per_channel else Hkv).astype(np.float32),
            "row_weight": (rng.integers(1, 5, (Hkv, D)) / 2).astype(np.float32) if weighted else None,
            "transmit": rng.random((B, N)) < 0.2 if forced else None,
        },
        {"granularity": granularity, "row_rule": draw(st.sampled_from(["relative", "absolute"]))},
        ("held_key", "delta"),
    )


@st.composite
def hybrid_cases(draw: st.DrawFn) -> SmallCase:
    """A random HybridWindowAttention call over keys and held keys that have nothing to do with each other."""
    B, Hkv, G, S, D = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (1, 4), (1, 6), (1, 9)))
    C = S + draw(st.integers(0, 12))
    dtype = draw(st.sampled_from(["float32", "float16"]))
    bias, sink = draw(st.booleans()), draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    past = rng.integers(0, C - S + 1, B)
    length = past + rng.integers(1, S + 1, B)
    start = np.minimum(rng.integers(0, 5, B), length)
    row = np.arange(C)
    unused = (row < start[:, None]) | (row >= length[:, None])
    caches = [rng.normal(size=(B, Hkv, C, D)).astype(dtype) for _ in range(3)]
    for cache in caches:
        cache[np.broadcast_to(unused[:, None], cache.shape[:3])] = np.nan
    key, held_key, value = caches
    return SmallCase(
        "HybridWindowAttention",
        {
            "query": rng.normal(size=(B, Hkv * G, S, D)).astype(dtype),
            "key": key,
            "held_key": held_key,
            "value": value,
            "past_length": past,
            "start": start,
            "length": length,
            "attention_bias": rng.normal(size=(draw(st.sampled_from([1, B])), 1, S, C)).astype(dtype) if bias else None,
            "head_sink": rng.normal(size=Hkv * G).astype(dtype) if sink else None,
        },
        {
            "scale": draw(st.sampled_from([0.0, 0.7])),
            "softcap": draw(st.sampled_from([0.0, 2.0])),
            "local_window_size": draw(st.sampled_from([-1, 1, 4])),
            "delta_window": draw(st.sampled_from([0, 1, 3, 20])),
            "sinks": draw(st.sampled_from([0, 1, 4])),
            "prefill": draw(st.sampled_from(["exact", "delta"])),
            "v_skip": draw(st.sampled_from([0.0, 0.3])),
        },
        ("output",),
    )
