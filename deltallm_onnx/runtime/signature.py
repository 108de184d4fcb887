"""What a decoder's model file takes and gives: its inputs, outputs and caches, found by their conventional names."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import onnx

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import PACKED_FORMATS, PackedSizes, padded_head_size
from deltallm_onnx.runtime.cache import CacheTensor

DOMAIN = "ai.deltallm"

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
#: Names of outputs with a layer's raw counts.
STATISTICS = re.compile(r"statistics\.(\d+)")

# Operators that take one buffer as past and present, with more rows than are in use, and the inputs of which one must
# be there to say how many: seqlens_k or attention_mask.
_IN_PLACE = {(DOMAIN, "DeltaAttention"): (5, 18), ("com.microsoft", "GroupQueryAttention"): (5,)}


@dataclasses.dataclass(frozen=True)
class DecoderSignature:
    """The interface of a causal language model with a cache.

    Attributes:
        caches: every key and value cache, by layer, key first.
        input_types: element type of every input that is not a cache: input_ids, attention_mask, maybe position_ids.
        statistics: outputs int64 [Hkv, 8] by layer; empty without them.
        delta_nodes: number of nodes of domain ai.deltallm in the graph.
        without_function: operators of that domain that only the library can run.
    """

    caches: tuple[CacheTensor, ...]
    input_types: dict[str, np.dtype[Any]]
    statistics: tuple[str, ...]
    delta_nodes: int
    without_function: tuple[str, ...]

    @property
    def layers(self) -> int:
        """Number of layers with a cache."""
        return len(self.caches) // 2


def read_signature(model: onnx.ModelProto, where: str, *, use_library: bool) -> DecoderSignature:
    """Read and check the interface of a decoder.

    Args:
        model: the parsed file (`read_graph`).
        where: its name, for refusals.
        use_library: whether the operator library will run the `ai.deltallm` nodes; only it updates caches in place.

    Raises:
        DeltaLLMError: where the model lacks token ids, logits or caches under their conventional names, or wants an
            input this runtime does not know.
    """
    inputs = {value.name: value for value in model.graph.input}
    # Up to IR version 3 every initializer is listed as an input too.
    for initializer in model.graph.initializer:
        inputs.pop(initializer.name, None)
    outputs = {value.name for value in model.graph.output}
    past = {name for name in inputs if _PAST.fullmatch(name)}
    others = {name: _element_type(value, where) for name, value in inputs.items() if name not in past}
    if "input_ids" not in inputs or "logits" not in outputs or not past:
        raise DeltaLLMError(
            f"{where} is not a language model this runtime knows: it needs the inputs input_ids and "
            "past_key_values.N.key/value and the output logits, as 'deltallm-onnx convert' writes them."
        )
    unknown = sorted(set(others) - {"input_ids", "attention_mask", "position_ids"})
    if unknown:
        raise DeltaLLMError(
            f"{where} has the input {unknown[0]!r}, which this runtime cannot supply: it knows input_ids, "
            "attention_mask, position_ids and past_key_values.N.key/value."
        )
    return DecoderSignature(
        caches=_caches(model, past, where, use_library=use_library),
        input_types=others,
        statistics=tuple(sorted((name for name in outputs if STATISTICS.fullmatch(name)), key=_index)),
        delta_nodes=sum(node.domain == DOMAIN for node in model.graph.node),
        without_function=operators_without_function(model),
    )


def _caches(model: onnx.ModelProto, past: set[str], where: str, *, use_library: bool) -> tuple[CacheTensor, ...]:
    outputs = {value.name for value in model.graph.output}
    producers = {name: node for node in model.graph.node for name in node.output if name}
    values = {value.name: value for value in model.graph.input}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    widths = {name: dims[-1].dim_value for name, dims in shapes.items() if dims}
    caches = []
    for index in sorted({_index(name) for name in past}):
        for role in ("key", "value"):
            name, present = f"past_key_values.{index}.{role}", f"present.{index}.{role}"
            if name not in past or present not in outputs:
                raise DeltaLLMError(
                    f"{where} has a cache in layer {index} without {name} or {present}: both are needed."
                )
            producer = producers.get(present)
            dims = [d.dim_value for d in values[name].type.tensor_type.shape.dim]
            if len(dims) == 4 and dims[3] < 1 and producer is not None:
                dims[3] = _head_size(producer, widths)
            if len(dims) != 4 or dims[1] < 1 or dims[3] < 1:
                raise DeltaLLMError(
                    f"{where} declares {name} with the shape {dims} (0 = not fixed): "
                    "four axes [batch, KV heads, rows, row size] are needed, the second and the last fixed."
                )
            in_place = producer is not None and _updates_in_place(producer, use_library=use_library)
            dtype = _element_type(values[name], where)
            packed = None if producer is None else _packed_sizes(producer, dims[3], f"{where}, {name}")
            rows = dims[2] if in_place and dims[2] > 0 else None
            cache = CacheTensor(name, present, dtype, dims[1], dims[3], in_place=in_place, packed=packed, rows=rows)
            caches.append(cache)
    return tuple(caches)


def _head_size(node: onnx.NodeProto, widths: dict[str, int]) -> int:
    """D of a cache whose shape has a name for it, as onnxruntime-genai's builder writes; 0 where it is not known."""
    heads = next((attribute.i for attribute in node.attribute if attribute.name == "num_heads"), 0)
    width = widths.get(node.output[0], 0)
    return width // heads if node.op_type == "GroupQueryAttention" and heads > 0 and width % heads == 0 else 0


def _updates_in_place(node: onnx.NodeProto, *, use_library: bool) -> bool:
    """Whether this node may write present over past; function bodies of `ai.deltallm` cannot."""
    if node.domain == DOMAIN and not use_library:
        return False
    lengths = _IN_PLACE.get((node.domain, node.op_type), ())
    return any(index < len(node.input) and node.input[index] for index in lengths)


def _packed_sizes(node: onnx.NodeProto, last: int, where: str) -> PackedSizes | None:
    """The sizes of the packed cache that this node writes; None for a cache of numbers."""
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    cache_format = attributes.get("cache_format", b"").decode("utf-8", "replace")
    if (node.domain, node.op_type) != (DOMAIN, "DeltaAttention") or cache_format not in PACKED_FORMATS:
        return None
    head_size = padded_head_size(cache_format, last)
    if head_size is None:
        raise DeltaLLMError(
            f"{where} has rows of {last} bytes, which no {cache_format} cache has: convert the model again."
        )
    return PackedSizes(cache_format, head_size, attributes.get("sinks", 0), attributes.get("delta_window", 0))


def operators_without_function(model: onnx.ModelProto) -> tuple[str, ...]:
    """Operators of `ai.deltallm` that a model uses and has no function body for: only the library runs them."""
    bodies = {function.name for function in model.functions if function.domain == DOMAIN}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    return tuple(sorted({node.op_type for node in nodes if node.domain == DOMAIN} - bodies))


def _index(name: str) -> int:
    return int(name.split(".")[1])


def _element_type(value: onnx.ValueInfoProto, where: str) -> np.dtype[Any]:
    element = value.type.tensor_type.elem_type
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element))
    except KeyError as error:
        raise DeltaLLMError(f"{where} declares {value.name} without a known element type ({element}).") from error
