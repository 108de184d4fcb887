"""Everything is kept; of pages of tokens only those are read whose bounds promise the largest scores.

Quest: Query-Aware Sparsity for Efficient Long-Context LLM Inference, arXiv 2406.10774. A page's bounds are the smallest
and the largest number of every key channel; their product with a query is at least that of any key in the page. The
page that is being filled is always read, so that its bounds are not needed. There the first two layers read everything.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bench.baselines.method import Attended, attend, causal, tokens_so_far
from bench.baselines.storage import HALF, Storage, halves

PAGE = 16


@dataclasses.dataclass(frozen=True)
class Quest:
    """The method with its knobs.

    Attributes:
        pages: pages that a query reads, the newest included.
        dense_layers: first layers that read everything.
        shared: the heads of a group read the pages whose bounds, added up over the group, are largest. Otherwise every
            head chooses its own, and what any of them chose is read.
        storage: of the rows. Bounds are half precision.
        page: tokens of a page.
    """

    pages: int
    dense_layers: int
    shared: bool
    storage: Storage
    page: int = PAGE

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        S, D = key.shape[2:]
        key, value = self.storage.stored(key), self.storage.stored(value)
        full = torch.arange(S) // self.page
        selects = full >= self.pages if layer >= self.dense_layers else torch.zeros(S, dtype=torch.bool)
        page_of = torch.arange(S) // self.page
        chosen = self._chosen(query, key, full) | ~selects[:, None]
        chosen[..., torch.arange(S), page_of] = True
        visible = chosen[..., page_of] & causal(S)
        rows = visible.any(dim=2).sum(dim=-1)
        row, bounds = 2 * self.storage.row_bytes(D), 2 * D * HALF
        # A layer that never chooses needs no bounds.
        has_bounds = torch.full((S,), layer >= self.dense_layers)
        kept = tokens_so_far(key) * row + (torch.arange(1, S + 1) // self.page) * has_bounds * bounds
        read = rows * row + selects * full * bounds
        return Attended(attend(query, key, value, visible), kept.sum(dim=1), read.sum(dim=1))

    def _chosen(self, query: Tensor, key: Tensor, full: Tensor) -> Tensor:
        """Full pages before each query that it reads, bool [B, Hkv, G or 1, S, pages]."""
        B, Hkv, S, D = key.shape
        count = -(-S // self.page)
        # The last page may never fill: then nobody asks for its bounds.
        padded = torch.cat([key, key[:, :, -1:].expand(-1, -1, count * self.page - S, -1)], dim=2)
        paged = padded.unflatten(2, (count, self.page))
        low, high = halves(paged.amin(dim=3)), halves(paged.amax(dim=3))
        grouped = query.reshape(B, Hkv, -1, S, D)
        bound = grouped.clamp(min=0) @ high[:, :, None].mT + grouped.clamp(max=0) @ low[:, :, None].mT
        if self.shared:
            bound = bound.sum(dim=2, keepdim=True)
        bound = bound.masked_fill(torch.arange(count) >= full[:, None], -torch.inf)
        best = bound.topk(min(self.pages - 1, count), dim=-1).indices
        return torch.zeros_like(bound, dtype=torch.bool).scatter_(-1, best, True) & bound.isfinite()
