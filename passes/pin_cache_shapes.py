"""Write numbers where the shapes of caches have names: the head size, and for some runtimes the rows."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.site import AttentionSite

#: In names of cache lengths, onnxruntime-genai's builder has the first word for window-sized caches, else the second.
_WINDOWED, _WHOLE = "sliding", "sequence"


class PinCacheShapesPass(ir.passes.InPlacePass):
    """Give the caches of every site the shape [batch, Hkv, rows, D] with numbers for Hkv and D.

    Matched:        past_key_values.N.* [batch, Hkv, past_sliding_length, kv_cache_dim] ─▶ attention ─▶ present.N.*
    Replacement:    the same with [batch, Hkv, past_sequence_length, D]

    A cache that held no more than its layer's window gets the name of a whole cache's length, because DeltaAttention
    keeps every row and hides those behind the window. Only GroupQueryAttention has such caches.
    """

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        super().__init__()
        self._sites = sites

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the shapes of the four caches of every site."""
        modified = False
        for site in self._sites:
            for cache in (site.past_key, site.past_value, site.present_key, site.present_value):
                if cache.shape is None:
                    continue
                batch, _, rows, _ = cache.shape.dims
                pinned = ir.Shape(
                    [batch, site.kv_num_heads, rows if site.lengths is None else _whole(rows), site.head_size]
                )
                modified = modified or pinned != cache.shape
                cache.shape = pinned
        return ir.passes.PassResult(model, modified=modified)


def fix_cache_rows(model: ir.Model, rows: int) -> None:
    """Give the caches of every DeltaAttention node a fixed number of rows.

    A runtime that allocates caches itself, such as onnxruntime-genai, allocates one row per token otherwise.

    Args:
        model: rewritten; changed in place.
        rows: capacity of every cache.
    """
    for node in naming.delta_nodes(model):
        pasts = node.inputs[naming.PAST_KEY], node.inputs[naming.PAST_VALUE]
        for cache in (*pasts, node.outputs[naming.PRESENT_KEY], node.outputs[naming.PRESENT_VALUE]):
            if cache is not None and cache.shape is not None:
                batch, heads, _, row_size = cache.shape.dims
                cache.shape = ir.Shape([batch, heads, rows, row_size])


def _whole(rows: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(rows, int) or rows.value is None:
        return rows
    return ir.SymbolicDim(rows.value.replace(_WINDOWED, _WHOLE))
