"""The ways to run one attention layer that are compared, and their one-node models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from bench.geometry import Geometry
from deltallm_onnx.packed_sizes import PackedSizes

DELTA = ("ai.deltallm", "DeltaAttention")
GROUP_QUERY = ("com.microsoft", "GroupQueryAttention")

#: Profile "balanced" of DeltaConfig.
DELTA_ATTRIBUTES: Mapping[str, Any] = {
    "granularity": "row",
    "delta_window": 128,
    "sinks": 4,
    "prefill": "exact",
}
THRESHOLD = 0.6
#: The quantised formats, and GroupQueryAttention's scales for them: 5 and 3 standard deviations fit.
QUANTISED = {"int8": 5.0 / 127, "int4": 3.0 / 7}


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run an attention layer.

    Attributes:
        name: unique among those compared.
        operator: domain and type.
        cache: "float32", "float16", "int8" or "int4".
        half_held: the past is made of pairs of equal keys, so that half the coded rows are held.
        threshold: θ; only of DeltaAttention.
        repeated: decode steps do not move on: the same token again and again, so no row leaves the window.
        against: name of the contender it is compared with beside the peers.
        attributes: of the node, beside the geometry and `DELTA_ATTRIBUTES`.
        arithmetic: the multiply-adds its bulk is made of, for the roofline: "float32", "bfloat16" or "int8"; a pair
            names those of QK and of PV.
    """

    name: str
    operator: tuple[str, str]
    cache: str
    half_held: bool = False
    threshold: float = THRESHOLD
    repeated: bool = False
    against: str | None = None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arithmetic: tuple[str, str] = ("float32", "float32")

    @property
    def ours(self) -> bool:
        """Whether this is DeltaAttention."""
        return self.operator == DELTA

    def constant_inputs(self, geometry: Geometry) -> Mapping[str, tuple[int, npt.NDArray[np.float32]]]:
        """Inputs of the node that never change: their place and value, in the order of their places."""
        if self.ours:
            return {"threshold": (16, np.full(geometry.kv_heads, self.threshold, np.float32))}
        if self.cache not in QUANTISED:
            return {}
        scales = np.full((1, geometry.kv_heads, 1, geometry.head_size), QUANTISED[self.cache], np.float32)
        return {"k_scale": (12, scales), "v_scale": (13, scales)}


def group_query(cache: str) -> Contender:
    """ONNX Runtime's own attention; quantised caches have one scale per channel."""
    quantised: dict[str, Any] = {}
    if cache in QUANTISED:
        quantised = {
            "k_quant_type": "PER_CHANNEL",
            "v_quant_type": "PER_CHANNEL",
            "kv_cache_bit_width": int(cache.removeprefix("int")),
        }
    return Contender(f"GQA {cache}", GROUP_QUERY, cache, attributes=quantised)


def delta(cache: str, suffix: str = "", **fields: Any) -> Contender:
    """DeltaAttention with a cache of some format; `attributes` join those of profile "balanced"."""
    kind = "int8" if cache in QUANTISED else "float32"
    fields.setdefault("arithmetic", (kind, kind))
    attributes = {**DELTA_ATTRIBUTES, "cache_format": cache, **fields.pop("attributes", {})}
    return Contender(f"ours {cache}{suffix}", DELTA, cache, attributes=attributes, **fields)


def prefill(cache: str, compute: str) -> Contender:
    """DeltaAttention reading a prompt in the arithmetic of attribute `prefill_compute`."""
    arithmetic = {"float32": ("float32", "float32"), "bfloat16": ("bfloat16", "bfloat16"), "int8": ("int8", "bfloat16")}
    # float32 is the attribute's default: leaving it out keeps older libraries comparable.
    attributes = {} if compute == "float32" else {"prefill_compute": compute}
    return delta(cache, f", {compute} compute", attributes=attributes, arithmetic=arithmetic[compute])


PEERS = tuple(group_query(cache) for cache in ("float32", "int8", "int4"))

DECODE = (
    *PEERS,
    *(delta(cache) for cache in ("float32", "float16", "int8", "int4")),
    *(delta(cache, ", half held", half_held=True, against=f"ours {cache}") for cache in ("int8", "int4")),
)

PREFILL = (
    *PEERS,
    *(prefill("float32", compute) for compute in ("float32", "bfloat16", "int8")),
    *(prefill("int8", compute) for compute in ("float32", "bfloat16", "int8")),
    prefill("int4", "bfloat16"),
)

#: More tokens than any benchmark has: nothing ever leaves such a window, so nothing is coded.
_ENDLESS = 1 << 20


def _overhead(cache: str) -> tuple[Contender, ...]:
    """What delta attention itself costs, one cache format."""
    # The rows of an endless window have 8 bits in an int4 cache too: it would compare other bytes.
    endless = [] if cache == "int4" else [delta(cache, ", endless window", attributes={"delta_window": _ENDLESS})]
    exact = delta(cache, ", θ = 0", threshold=0.0, against=endless[0].name if endless else None)
    repeated = delta(cache, ", repeated step", repeated=True)
    return (*endless, exact, repeated, delta(cache, against=repeated.name))


#: Nothing coded, θ = 0, steps that append but code nothing, and plain steps.
OVERHEAD = tuple(contender for cache in ("float32", "float16", "int8", "int4") for contender in _overhead(cache))

#: Those whose speed on one and on several threads is compared.
SCALING = (PEERS[0], *(delta(cache) for cache in ("float32", "float16", "int8", "int4")))


def cache_layout(contender: Contender, geometry: Geometry) -> tuple[np.dtype[Any], int]:
    """Element type and last axis of the cache tensors [1, Hkv, capacity, last]."""
    if contender.ours and contender.cache in QUANTISED:
        return np.dtype(np.uint8), _packed_sizes(contender, geometry).bytes_per_token
    layouts: dict[str, tuple[np.dtype[Any], int]] = {
        "float32": (np.dtype(np.float32), geometry.head_size),
        "float16": (np.dtype(np.float16), geometry.head_size),
        "int8": (np.dtype(np.int8), geometry.head_size),
        "int4": (np.dtype(np.uint8), geometry.head_size // 2),
    }
    return layouts[contender.cache]


def capacity_for(contender: Contender, geometry: Geometry, tokens: int) -> int:
    """Rows of a cache that so many tokens fit in."""
    if contender.ours and contender.cache in QUANTISED:
        return max(tokens, _packed_sizes(contender, geometry).rows_needed(tokens))
    return tokens


def _packed_sizes(contender: Contender, geometry: Geometry) -> PackedSizes:
    attributes = contender.attributes
    return PackedSizes(contender.cache, geometry.head_size, attributes["sinks"], attributes["delta_window"])


def one_node_model(contender: Contender, geometry: Geometry, *, statistics: bool = False) -> bytes:
    """A serialized model with one node: query, key, value, past_key, past_value, seqlens_k and total as inputs."""
    dtype, last = cache_layout(contender, geometry)
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    widths = {"query": geometry.heads, "key": geometry.kv_heads, "value": geometry.kv_heads}

    def tensor(name: str, element: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, element, shape)

    inputs = [tensor(n, TensorProto.FLOAT, 1, "S", heads * geometry.head_size) for n, heads in widths.items()]
    inputs += [tensor(n, kind, 1, geometry.kv_heads, "C", last) for n in ("past_key", "past_value")]
    inputs += [tensor("seqlens_k", TensorProto.INT32, 1), tensor("total", TensorProto.INT32, 1)]
    outputs = [tensor("output", TensorProto.FLOAT, 1, "S", geometry.heads * geometry.head_size)]
    outputs += [tensor(n, kind, 1, geometry.kv_heads, "C", last) for n in ("present_key", "present_value")]
    names = [value.name for value in inputs]
    initializers = []
    for name, (place, array) in contender.constant_inputs(geometry).items():
        names += [""] * (place - len(names)) + [name]
        initializers.append(numpy_helper.from_array(array, name))
    if statistics:
        outputs.append(tensor("statistics", TensorProto.INT64, geometry.kv_heads, 8))
    domain, op_type = contender.operator
    sizes = {"num_heads": geometry.heads, "kv_num_heads": geometry.kv_heads}
    attributes = {**sizes, **contender.attributes}
    node = helper.make_node(op_type, names, [value.name for value in outputs], domain=domain, **attributes)
    graph = helper.make_graph([node], op_type, inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized
