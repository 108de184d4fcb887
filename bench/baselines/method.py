"""What a method is: attention over one layer of whole windows, as if they were decoded token by token.

Letters in shapes: B windows, S tokens of each, Hq query heads, Hkv KV heads, G = Hq / Hkv, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

#: Queries per product: they bound the memory of scores.
_QUERIES = 128


@dataclasses.dataclass(frozen=True)
class Attended:
    """One layer's attention, and what its cache cost.

    Attributes:
        output: float32 [B, Hq, S, D].
        kept: bytes that lie in the layer's cache after each token, all KV heads together, int64 [B, S].
        read: bytes of it that the token's query read, int64 [B, S]; a row is read once for all heads of its group.
    """

    output: Tensor
    kept: Tensor
    read: Tensor


class Method(Protocol):
    """A key/value cache of limited size, or of limited reads."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """Attend.

        Args:
            layer: number of the layer.
            query: float32 [B, Hq, S, D], rotated, times the scale.
            key: float32 [B, Hkv, S, D], rotated.
            value: the same, not rotated.
        """
        ...


def scores(query: Tensor, key: Tensor) -> Tensor:
    """Products of every query with every key, float32 [B, Hkv, G, queries, keys]."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    return grouped @ key[:, :, None].transpose(-1, -2)


def causal(tokens: int) -> Tensor:
    """Which keys lie no later than the query, bool [queries, keys]."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def blocks(tokens: int) -> Iterator[slice]:
    """Queries that are answered at once; they see no key behind the block's end."""
    for begin in range(0, tokens, _QUERIES):
        yield slice(begin, min(begin + _QUERIES, tokens))


def attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attention of every query over the keys that it sees, one of them at least.

    Args:
        query: float32 [B, Hq, S, D], times the scale.
        key: float32 [B, Hkv, S, D].
        value: the same.
        visible: bool, to be broadcast to [B, Hkv, G, S, S]; no key later than the query.

    Returns:
        float32 [B, Hq, S, D].
    """
    outputs = []
    for block in blocks(query.shape[2]):
        seen = slice(0, block.stop)
        found = scores(query[:, :, block], key[:, :, seen])
        weights = found.masked_fill_(~visible[..., block, seen], -torch.inf).softmax(dim=-1)
        outputs.append(weights @ value[:, :, None, seen])
    return torch.cat(outputs, dim=3).reshape(query.shape)


def of_all_heads(rows: Tensor, row_bytes: int) -> Tensor:
    """Bytes of keys and values from numbers of rows per KV head: [B, Hkv, S] to [B, S]."""
    return 2 * row_bytes * rows.sum(dim=1)


def tokens_so_far(key: Tensor) -> Tensor:
    """Rows of a cache that keeps everything, after each token, int64 [B, Hkv, S]."""
    B, Hkv, S, _ = key.shape
    return torch.arange(1, S + 1).expand(B, Hkv, S)
