"""Ours: rows of the packed caches, held rows merged into runs (docs/spec.md, docs/cache-format.md), prefill "delta"."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from bench.baselines.method import Attended, blocks, scores
from bench.baselines.storage import groups_of_codes, int8_rows
from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.packed_sizes import BLOCK_ROWS, PackedSizes
from deltallm_onnx.reference import hold


@dataclasses.dataclass(frozen=True)
class DeltaRows:
    """The method with its knobs.

    Attributes:
        plan: thresholds, rules and weights of the layers, all of granularity "row".
        window: newest tokens that are read as they are.
        sinks: first tokens that are.
        cache_format: "int8" or "int4".
    """

    plan: AttentionPlan
    window: int
    sinks: int
    cache_format: str

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        """See `Method`."""
        sizes = PackedSizes(self.cache_format, key.shape[3], self.sinks, self.window)
        key, value = int8_rows(key), int8_rows(value)
        runs = self._runs(layer, key, value)
        S = key.shape[2]
        # The token that was coded last before each query; where there is none yet, nothing is coded either.
        last = torch.arange(S) - self.window
        coded = (last - self.sinks + 1).clamp(min=0)
        rows = torch.where(coded > 0, runs.row[:, :, last.clamp(min=0)] + 1, 0)
        sealed = torch.zeros_like(rows)
        if self.cache_format == "int4":
            sealed = (rows - 1).clamp(min=0) // BLOCK_ROWS
        reads = _Reads(key, value, runs, _block_codes(runs), last, sealed, self.sinks)
        output = torch.cat([reads.attend(query, block) for block in blocks(S)], dim=3)

        exact = torch.arange(1, S + 1) - coded
        area = (exact + rows - BLOCK_ROWS * sealed) * sizes.row_bytes + sealed * sizes.block_bytes
        kept = 2 * area.sum(dim=1)
        return Attended(output.reshape(query.shape), kept, kept)

    def _runs(self, layer: int, key: Tensor, value: Tensor) -> Runs:
        """Runs over all tokens of the windows; the sinks are rows of their own."""
        own = self.plan[layer]
        held = hold(
            key.numpy(),
            own.threshold,
            granularity=own.granularity,
            row_rule=own.row_rule,
            row_weight=own.row_weight,
            sinks=self.sinks,
        )
        starts = np.ones(held.shape[:3], bool)
        starts[:, :, 1:] = (held[:, :, 1:] != held[:, :, :-1]).any(axis=-1)
        # A sink stays as it is, so a row held against it is one of its own.
        starts[:, :, : self.sinks + 1] = True
        return merged(torch.from_numpy(held), value, torch.from_numpy(starts), self.sinks)


@dataclasses.dataclass(frozen=True)
class Runs:
    """What the tokens of windows are read as once they are coded.

    Attributes:
        key: float32 [B, Hkv, S, D].
        value: the mean of the token's run, 8-bit codes, the same shape.
        growing: that mean when this token was the last one coded, the same shape.
        row: the coded row that the token is in, counted from the first token behind the sinks; int64 [B, Hkv, S].
    """

    key: Tensor
    value: Tensor
    growing: Tensor
    row: Tensor


def merged(held: Tensor, value: Tensor, starts: Tensor, sinks: int) -> Runs:
    """Runs from where they start.

    Args:
        held: keys, float32 [B, Hkv, S, D].
        value: the same, decoded.
        starts: tokens that begin a run, bool [B, Hkv, S].
        sinks: first tokens, which are no coded rows.
    """
    S = starts.shape[2]
    row = starts.long().cumsum(dim=2) - 1 - sinks
    token = torch.arange(S).expand(starts.shape)
    first = torch.where(starts, token, 0).cummax(dim=2).values
    ends = torch.cat([starts[:, :, 1:], torch.ones_like(starts[:, :, :1])], dim=2)
    end = torch.where(ends, token, S).flip(2).cummin(dim=2).values.flip(2)
    growing = _growing_means(value, starts, token - first)
    return Runs(held, growing.gather(2, _per_channel(end, value)), growing, row)


def _growing_means(value: Tensor, starts: Tensor, joined: Tensor) -> Tensor:
    """The mean value of a token's run so far, 8-bit codes: what lies in the cache once the token is coded.

    Args:
        value: decoded, float32 [B, Hkv, S, D].
        starts: tokens that begin a run, bool [B, Hkv, S].
        joined: tokens of the run before this one, int64 [B, Hkv, S].
    """
    growing = torch.empty_like(value)
    mean = torch.zeros_like(value[:, :, 0])
    for t in range(value.shape[2]):
        new = value[:, :, t]
        mean = torch.where(starts[:, :, t, None], new, mean + (new - mean) / (joined[:, :, t, None] + 1))
        # A row of one token is left as it came in; rounding it once more changes nothing.
        growing[:, :, t] = int8_rows(mean)
        mean = growing[:, :, t] + int8_rows(mean - growing[:, :, t])
    return growing


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Keys and values of tokens whose row is in a sealed block, float32 [B, Hkv, S, D]; of others 0."""

    key: Tensor
    value: Tensor


@dataclasses.dataclass(frozen=True)
class _Reads:
    """What queries read.

    Attributes:
        key: decoded, float32 [B, Hkv, S, D].
        value: the same.
        runs: of all tokens.
        in_blocks: keys and values of rows in sealed blocks.
        last: the token that was coded last before each query, int64 [S].
        sealed: blocks at each query, int64 [B, Hkv, S].
        sinks: first tokens.
    """

    key: Tensor
    value: Tensor
    runs: Runs
    in_blocks: _Blocks
    last: Tensor
    sealed: Tensor
    sinks: int

    def attend(self, query: Tensor, block: slice) -> Tensor:
        """Output of some queries, float32 [B, Hkv, G, queries, D]."""
        seen = slice(0, block.stop)
        i, j = torch.arange(block.start, block.stop)[:, None], torch.arange(block.stop)
        coded = (j >= self.sinks) & (j <= self.last[block, None])
        row, last = self.runs.row[:, :, None, seen], self.last[block].clamp(min=0)
        in_block = (coded & (row < BLOCK_ROWS * self.sealed[:, :, block, None]))[:, :, None]
        # The last run may still grow: queries read the mean of the tokens that had come.
        in_open_run = (coded & (row == self.runs.row[:, :, last, None]))[:, :, None] & ~in_block
        query = query[:, :, block]
        found = torch.where(coded, scores(query, self.runs.key[:, :, seen]), scores(query, self.key[:, :, seen]))
        has_blocks = bool(in_block.any())
        if has_blocks:
            found = torch.where(in_block, scores(query, self.in_blocks.key[:, :, seen]), found)
        weights = found.masked_fill_(j > i, -torch.inf).softmax(dim=-1)
        output = weights.masked_fill(coded, 0) @ self.value[:, :, None, seen]
        output += weights.masked_fill(~coded | in_block | in_open_run, 0) @ self.runs.value[:, :, None, seen]
        of_run = weights.masked_fill(~in_open_run, 0).sum(dim=-1, keepdim=True)
        output += of_run * self.runs.growing[:, :, None, last]
        if has_blocks:
            output += weights.masked_fill(~in_block, 0) @ self.in_blocks.value[:, :, None, seen]
        return output


def _block_codes(runs: Runs) -> _Blocks:
    key, value = torch.zeros_like(runs.key), torch.zeros_like(runs.value)
    for b in range(len(key)):
        for head in range(key.shape[1]):
            row = runs.row[b, head]
            # The first token of every coded row; the sinks before them have negative numbers.
            tokens = torch.nonzero((row >= 0) & (torch.diff(row, prepend=torch.tensor([-1])) > 0))[:, 0]
            tokens = tokens[: len(tokens) // BLOCK_ROWS * BLOCK_ROWS].reshape(-1, BLOCK_ROWS)
            if not len(tokens):
                continue
            keys = groups_of_codes(runs.key[b, head, tokens], 1, 4).flatten(0, 1)
            values = groups_of_codes(runs.value[b, head, tokens], 2, 4).flatten(0, 1)
            inside = (row >= 0) & (row < len(keys))
            key[b, head, inside], value[b, head, inside] = keys[row[inside]], values[row[inside]]
    return _Blocks(key, value)


def _per_channel(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(*index.shape, like.shape[-1])
