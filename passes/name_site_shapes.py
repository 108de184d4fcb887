"""Write down the shapes that matching a layer has settled, where exporter and shape inference left them open."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.passes import cache_match
from deltallm_onnx.passes.site import AttentionSite


class NameSiteShapesPass(ir.passes.InPlacePass):
    """Give the tensors of sites with four axes their shapes.

    Matched: query, new key, new value and output of a site, with dimensions that have no name ("?", "unk__7"), because
    TorchScript writes none and shape inference does not follow a rotary embedding.

    Replacement: [B, Hq, S, D] for query and output, [B, Hkv, S, D] for key and value. B and S are named as in whichever
    of them has a name; they are the same in all of them, or the model could not multiply and concatenate them.
    """

    def __init__(self, sites: Sequence[AttentionSite]) -> None:
        super().__init__()
        self._sites = sites

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the shapes."""
        modified = False
        for site in self._sites:
            if site.heads_first and site.key is not None and site.value is not None:
                tensors = {site.query: site.num_heads, site.key: site.kv_num_heads}
                tensors |= {site.value: site.kv_num_heads, site.output: site.num_heads}
                modified |= _name(tensors, site)
        return ir.passes.PassResult(model, modified)


def _name(tensors: dict[ir.Value, int], site: AttentionSite) -> bool:
    batch = _named([site.past_key, *tensors], 0)
    tokens = _named(list(tensors), 2)
    modified = False
    for tensor, heads in tensors.items():
        if tensor.shape is None or not all(cache_match.is_named(size) for size in tensor.shape):
            tensor.shape = ir.Shape([batch, heads, tokens, site.head_size])
            modified = True
    return modified


def _named(tensors: Sequence[ir.Value], axis: int) -> int | ir.SymbolicDim:
    sizes = (tensor.shape[axis] for tensor in tensors if tensor.shape is not None)
    return next((size for size in sizes if cache_match.is_named(size)), ir.SymbolicDim(None))
