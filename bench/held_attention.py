"""Attention over held keys in torch, for studies of what to hold: docs/spec.md sections 2 and 3, prefill "delta".

Slow, in float32, without any rounding of keys and values. The hold transform is the oracle's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from deltallm_onnx.reference import hold

Array = npt.NDArray[Any]

#: Name of the attention in transformers' registry.
IMPLEMENTATION = "deltallm_held_keys"
#: Windows per call, and queries per product: they bound the memory of logits and scores.
_WINDOWS, _QUERIES = 4, 256


@dataclasses.dataclass(frozen=True)
class HeldKeys:
    """What queries read in place of a layer's keys, once these have left the window.

    Attributes:
        keys: float32 [B, Hkv, S, D]; of a run, its key when all of the window's tokens have come.
        starts: bool [B, Hkv, S], tokens that begin a run; a run is what has one key. None where single channels are
            held.
        growing: float32 [B, Hkv, S, D] or None: the key of a token's run when this token was the last to be coded. None
            where it does not change as the run grows.
    """

    keys: Array
    starts: Array | None = None
    growing: Array | None = None

    def of_row(self, b: int) -> HeldKeys:
        """The same of one batch row, without the axis B."""
        starts, growing = (None if x is None else x[b] for x in (self.starts, self.growing))
        return HeldKeys(self.keys[b], starts, growing)


#: Layer number, queries [B, Hq, S, D] and keys [B, Hkv, S, D] → what is read; None: the keys themselves.
Coding = Callable[[int, Array, Array], HeldKeys | None]


def dense(_layer: int, _query: Array, _key: Array) -> None:
    """Nothing is held."""


def elements(thresholds: Sequence[Array | float], sinks: int) -> Coding:
    """Single channels are held; a threshold, or float32 [Hkv, D], per layer."""

    def code(layer: int, _query: Array, key: Array) -> HeldKeys:
        return HeldKeys(hold(key, thresholds[layer], granularity="element", sinks=sinks))

    return code


def rows(threshold: float, sinks: int) -> Coding:
    """Whole rows are held, by the relative rule, and a run has the key that was transmitted last."""

    def code(_layer: int, _query: Array, key: Array) -> HeldKeys:
        held = hold(key, threshold, granularity="row", sinks=sinks)
        return HeldKeys(held, _starts(held, sinks))

    return code


def weighted_rows(threshold: float, weights: Sequence[Array], sinks: int) -> Coding:
    """The same by the absolute rule with channel weights, float32 [Hkv, D], per layer."""

    def code(layer: int, _query: Array, key: Array) -> HeldKeys:
        weight = weights[layer]
        held = hold(key, threshold, granularity="row", row_rule="absolute", row_weight=weight, sinks=sinks)
        return HeldKeys(held, _starts(held, sinks))

    return code


def rows_with_mean_key(threshold: float, sinks: int) -> Coding:
    """The same runs, but read with the mean of their keys so far."""

    def code(_layer: int, _query: Array, key: Array) -> HeldKeys:
        starts = _starts(hold(key, threshold, granularity="row", sinks=sinks), sinks)
        growing = np.empty_like(key)
        mean, count = np.zeros_like(key[:, :, 0], np.float64), np.zeros((*key.shape[:2], 1))
        for t in range(key.shape[2]):
            count = np.where(starts[:, :, t, None], 1, count + 1)
            mean += (key[:, :, t] - mean) / count
            growing[:, :, t] = mean
        return HeldKeys(_last_of_run(growing, starts), starts, growing)

    return code


def rows_against_mean_key(threshold: float, sinks: int) -> Coding:
    """Whole rows are held against the mean of the run's keys so far, which is what is read, too."""

    def code(_layer: int, _query: Array, key: Array) -> HeldKeys:
        growing, starts = np.empty_like(key), np.zeros(key.shape[:3], bool)
        mean, count = np.zeros_like(key[:, :, 0], np.float64), np.zeros((*key.shape[:2], 1))
        for t in range(key.shape[2]):
            row = key[:, :, t].astype(np.float64)
            change = np.linalg.norm(row - mean, axis=-1, keepdims=True)
            # A sink stays as it is, so the first run begins behind the last one.
            begins = (change > threshold * np.linalg.norm(row, axis=-1, keepdims=True)) | (t <= sinks)
            count = np.where(begins, 1, count + 1)
            mean += (row - mean) / count
            growing[:, :, t], starts[:, :, t] = mean, begins[..., 0]
        return HeldKeys(_last_of_run(growing, starts), starts, growing)

    return code


def _starts(held: Array, sinks: int) -> Array:
    """Where runs begin: rows that are not the one before, and the first coded one."""
    starts = np.ones(held.shape[:3], bool)
    starts[:, :, 1:] = (held[:, :, 1:] != held[:, :, :-1]).any(axis=-1)
    starts[:, :, : sinks + 1] = True
    return starts


def _last_of_run(growing: Array, starts: Array) -> Array:
    """The row of every token's run's last token."""
    S = starts.shape[2]
    ends = np.concatenate([starts[:, :, 1:], np.ones_like(starts[:, :, :1])], axis=2)
    last = np.where(ends, np.arange(S), S)
    last = np.minimum.accumulate(last[:, :, ::-1], axis=2)[:, :, ::-1]
    return np.take_along_axis(growing, last[..., None], axis=2)


class HeldKeyModel:
    """A causal language model whose attention reads held keys.

    Args:
        directory: of a Hugging Face model whose layers all see their whole past.
        window: newest tokens that are read as they are.
        sinks: first tokens that are.
    """

    def __init__(self, directory: Path, window: int, sinks: int) -> None:
        AttentionInterface.register(IMPLEMENTATION, self._attention)
        self.window, self.sinks = window, sinks
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=IMPLEMENTATION, local_files_only=True
        ).eval()
        self.layers: int = self.model.config.num_hidden_layers
        self._coding: Coding = dense

    def log_probabilities(self, windows: Array, coding: Coding) -> Iterator[Tensor]:
        """Of every window's tokens: float32 [S, V].

        Args:
            windows: token ids [N, S].
            coding: what attention reads.
        """
        with self._reading(coding), torch.inference_mode():
            for begin in range(0, len(windows), _WINDOWS):
                logits = self.model(torch.from_numpy(windows[begin : begin + _WINDOWS]), use_cache=False).logits
                yield from logits.log_softmax(dim=-1)

    @contextmanager
    def _reading(self, coding: Coding) -> Iterator[None]:
        self._coding = coding
        try:
            yield
        finally:
            self._coding = dense

    def _attention(  # transformers calls it so
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        held = self._coding(module.layer_idx, query.numpy(), key.numpy())
        outputs = []
        for b in range(len(query)):
            row = None if held is None else held.of_row(b)
            outputs.append(attend(query[b] * scaling, key[b], value[b], row, window=self.window, sinks=self.sinks))
        return torch.stack(outputs).transpose(1, 2).contiguous(), None


def attend(query: Tensor, key: Tensor, value: Tensor, held: HeldKeys | None, *, window: int, sinks: int) -> Tensor:
    """Attention of one batch row over held keys.

    Args:
        query: float32 [Hq, S, D], times the scale.
        key: float32 [Hkv, S, D].
        value: the same.
        held: what is read of the coded tokens, of this batch row alone; None: the keys themselves.
        window: newest tokens that are read as they are.
        sinks: first tokens that are.

    Returns:
        float32 [Hq, S, D].
    """
    Hq, S, D = query.shape
    grouped = query.reshape(key.shape[0], -1, S, D)
    outputs = []
    for begin in range(0, S, _QUERIES):
        end = min(begin + _QUERIES, S)
        q, j, i = grouped[:, :, begin:end], torch.arange(end), torch.arange(begin, end)[:, None]
        scores = q @ key[:, None, :end].transpose(-1, -2)
        if held is not None:
            coded = (j >= sinks) & (j <= i - window)
            scores = torch.where(coded, _coded_scores(q, (i[:, 0] - window).clamp(min=0), held, end), scores)
        weights = scores.masked_fill(j > i, -torch.inf).softmax(dim=-1)
        outputs.append(weights @ value[:, None, :end])
    return torch.cat(outputs, dim=2).reshape(Hq, S, D)


def _coded_scores(q: Tensor, last: Tensor, held: HeldKeys, end: int) -> Tensor:
    """Scores [Hkv, G, queries, end] of queries against the rows as they were when token last [queries] was coded."""
    scores = q @ torch.from_numpy(held.keys)[:, None, :end].transpose(-1, -2)
    if held.growing is None or held.starts is None:
        return scores
    open_keys = torch.from_numpy(held.growing)[:, None, last]
    run = torch.from_numpy(np.cumsum(held.starts, axis=1))
    in_open_run = run[:, None, None, :end] == run[:, None, last, None]
    return torch.where(in_open_run, (q * open_keys).sum(dim=-1, keepdim=True), scores)
