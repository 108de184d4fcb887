"""Keys quantised per channel over groups of tokens, values per token over groups of channels.

KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache, arXiv 2402.02750. As there, keys wait in half precision
until `residual` of them can be quantised together, and the newest `residual` values stay in half precision.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from bench.baselines.method import Attended, causal, scores
from bench.baselines.storage import HALF, groups_of_codes, halves


@dataclasses.dataclass(frozen=True)
class Kivi:
    """The method with its knobs.

    Attributes:
        bits: of a code.
        group: tokens of a key group and channels of a value group; its codes fill whole bytes.
        residual: keys that are quantised at once and values that are not, a multiple of `group`.
    """

    bits: int
    group: int
    residual: int

    def __call__(self, _layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        B, Hkv, S, D = key.shape
        key, value = halves(key), halves(value)
        sees = causal(S)
        # A token's query comes before what the token itself makes room for.
        i, j = torch.arange(S)[:, None], torch.arange(S)
        coded_key = j < i // self.residual * self.residual
        coded_value = j < i - self.residual
        both = torch.where(coded_key, scores(query, self._coded_keys(key)), scores(query, key))
        weights = both.masked_fill(~sees, -torch.inf).softmax(dim=-1)
        exact = weights.masked_fill(coded_value, 0) @ value[:, :, None]
        coded = weights.masked_fill(~coded_value, 0) @ self._coded_values(value)[:, :, None]
        n = torch.arange(1, S + 1)
        kept = self._bytes(n, n // self.residual * self.residual, (n - self.residual).clamp(min=0), D)
        read = self._bytes(n, coded_key.sum(dim=1), coded_value.sum(dim=1), D)
        return Attended((exact + coded).reshape(query.shape), *((Hkv * x).expand(B, S) for x in (kept, read)))

    def _coded_keys(self, key: Tensor) -> Tensor:
        """Keys as they are when quantised; a last group that is not full is left as it is."""
        full = key.shape[2] // self.group * self.group
        grouped = key[:, :, :full].unflatten(2, (-1, self.group))
        return torch.cat([groups_of_codes(grouped, 3, self.bits).flatten(2, 3), key[:, :, full:]], dim=2)

    def _coded_values(self, value: Tensor) -> Tensor:
        return torch.cat([groups_of_codes(part, -1, self.bits) for part in value.split(self.group, dim=-1)], dim=-1)

    def _bytes(self, tokens: Tensor, coded_keys: Tensor, coded_values: Tensor, D: int) -> Tensor:
        """Of one KV head, int64 [S]."""
        codes = -(-D * self.bits // 8)
        # A group has a scale and a zero.
        keys = coded_keys * codes + coded_keys // self.group * D * 2 * HALF
        values = coded_values * (codes + -(-D // self.group) * 2 * HALF)
        return keys + values + (2 * tokens - coded_keys - coded_values) * D * HALF
