"""Tokens that were attended to most, and the newest ones; a token once evicted is gone.

H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models, arXiv 2306.14048: what counts is
the sum of a token's attention weights over all queries so far. SnapKV: LLM Knows What You are Looking for Before
Generation, arXiv 2404.14469, looks at the newest queries alone, once, at the end of a prompt, and pools over
neighbours. With `decay` < 1 older queries count less, which is the nearest to it that decides after every token with
one number per row. Heads that share keys share their rows: their weights are added up.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bench.baselines.method import Attended, scores
from bench.baselines.storage import Storage

#: Bytes of a row's sum of weights, float32.
SUM_BYTES = 4


@dataclasses.dataclass(frozen=True)
class HeavyHitters:
    """The method with its knobs.

    Attributes:
        budget: rows per KV head that stay after a token's query.
        recent: newest tokens among them that are never evicted, below `budget`.
        decay: what a sum of weights is multiplied with after every token; 1 is H2O.
        storage: of the rows.
    """

    budget: int
    recent: int
    decay: float
    storage: Storage

    def __call__(self, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        B, Hkv, S, D = key.shape
        every = scores(query, self.storage.stored(key))
        weights = torch.zeros_like(every)
        alive = torch.ones(B, Hkv, S, dtype=torch.bool)
        mass = torch.zeros(B, Hkv, S)
        read = torch.empty(B, Hkv, S, dtype=torch.int64)
        for i in range(S):
            n = i + 1
            sees = alive[:, :, :n]
            now = every[:, :, :, i, :n].masked_fill(~sees[:, :, None], -torch.inf).softmax(dim=-1)
            weights[:, :, :, i, :n] = now
            read[:, :, i] = sees.sum(dim=-1)
            mass[:, :, :n] = self.decay * mass[:, :, :n] + now.sum(dim=2)
            if n > self.budget:
                old = mass[:, :, : n - self.recent].masked_fill(~sees[:, :, : n - self.recent], torch.inf)
                alive.scatter_(2, old.argmin(dim=-1, keepdim=True), False)
        output = (weights @ self.storage.stored(value)[:, :, None]).reshape(query.shape)
        kept = torch.arange(1, S + 1).clamp(max=self.budget).expand(B, Hkv, S)
        row = 2 * self.storage.row_bytes(D) + SUM_BYTES
        return Attended(output, kept.sum(dim=1) * row, read.sum(dim=1) * row)
