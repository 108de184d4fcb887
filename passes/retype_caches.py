"""Give the caches of `DeltaAttention` the element type, and if packed the last dimension, of their format."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from deltallm_onnx.packed_sizes import PACKED_FORMATS, bytes_per_token
from deltallm_onnx.passes import naming
from deltallm_onnx.passes.functions.delta_attention import CACHE_TYPES


class RetypeCachesPass(ir.passes.InPlacePass):
    """Set the type of past and present caches, keeping their shapes, symbolic dimensions included.

    Matched:        past_key_values.N.* (graph input)  ─▶ DeltaAttention(cache_format) ─▶ present.N.* (graph output)
    Replacement:    the same, of the type that cache_format names; a packed cache [B, Hkv, rows, D] becomes
                    [B, Hkv, rows, bytes_per_token] (docs/cache-format.md).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Retype the four caches of every DeltaAttention node."""
        modified = False
        for value, dtype, cache_format in _caches(model):
            modified = modified or value.dtype is not dtype
            if cache_format in PACKED_FORMATS and value.dtype is not dtype:
                value.shape = _packed_shape(value, cache_format)
            value.dtype = dtype
        return ir.passes.PassResult(model, modified=modified)

    def ensures(self, model: ir.Model) -> None:
        """Nothing but shapes is read from a cache outside its own layer, so no reader meets the new type unprepared."""
        for value, _, _ in _caches(model):
            readers = {(user.domain, user.op_type) for user, _ in value.uses()}
            strangers = readers - {("", "Shape"), (naming.DOMAIN, naming.DELTA_ATTENTION)}
            if strangers:
                raise ir.passes.PostconditionError(f"The cache {value.name!r} is read by {sorted(strangers)}.")


def _packed_shape(cache: ir.Value, cache_format: str) -> ir.Shape | None:
    """[B, Hkv, rows, D] → [B, Hkv, rows, bytes_per_token]."""
    if cache.shape is None:
        return None
    *leading, head_size = cache.shape.dims
    if not isinstance(head_size, int):
        raise ir.passes.PreconditionError(f"The head size of the cache {cache.name!r} is not fixed but {head_size}.")
    return ir.Shape([*leading, bytes_per_token(cache_format, head_size)])


def _caches(model: ir.Model) -> Iterator[tuple[ir.Value, ir.DataType, str]]:
    for node in naming.delta_nodes(model):
        cache_format = node.attributes["cache_format"].as_string()
        dtype = CACHE_TYPES[cache_format]
        for value in (
            node.inputs[naming.PAST_KEY],
            node.inputs[naming.PAST_VALUE],
            node.outputs[naming.PRESENT_KEY],
            node.outputs[naming.PRESENT_VALUE],
        ):
            if value is not None:
                yield value, dtype, cache_format
