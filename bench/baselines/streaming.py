"""The first tokens and the newest ones; all others are forgotten.

StreamingLLM: Efficient Streaming Language Models with Attention Sinks, arXiv 2309.17453. There positions count the rows
of the cache, for texts longer than a model was trained on; here, within that length, every key keeps its own position.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bench.baselines.method import Attended, attend, causal, of_all_heads, tokens_so_far
from bench.baselines.storage import Storage


@dataclasses.dataclass(frozen=True)
class StreamingLLM:
    """The method with its knobs.

    Attributes:
        sinks: first tokens that are kept.
        window: newest tokens that are, the query's own included.
        storage: of the rows.
    """

    sinks: int
    window: int
    storage: Storage

    def __call__(self, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        S = key.shape[2]
        i, j = torch.arange(S)[:, None], torch.arange(S)
        visible = causal(S) & ((j < self.sinks) | (j > i - self.window))
        output = attend(query, self.storage.stored(key), self.storage.stored(value), visible)
        rows = tokens_so_far(key).clamp(max=self.sinks + self.window)
        kept = of_all_heads(rows, self.storage.row_bytes(key.shape[3]))
        return Attended(output, kept, kept)
