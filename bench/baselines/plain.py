"""Every row is kept and read: float32, float16, and the common 8-bit and 4-bit caches."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from bench.baselines.method import Attended, attend, causal, of_all_heads, tokens_so_far
from bench.baselines.storage import Storage


@dataclasses.dataclass(frozen=True)
class Plain:
    """All rows in one format.

    Attributes:
        storage: of the rows.
    """

    storage: Storage

    def __call__(self, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        output = attend(query, self.storage.stored(key), self.storage.stored(value), causal(key.shape[2]))
        kept = of_all_heads(tokens_so_far(key), self.storage.row_bytes(key.shape[3]))
        return Attended(output, kept, kept)
