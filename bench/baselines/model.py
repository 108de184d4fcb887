"""A Hugging Face model in torch whose attention is a method's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM

from bench.baselines.method import Method
from bench.baselines.plain import Plain
from bench.baselines.storage import FLOAT32

Array = npt.NDArray[Any]

#: Name of the attention in transformers' registry.
IMPLEMENTATION = "deltallm_baselines"
#: Windows per call: they bound the memory of scores.
_WINDOWS = 4


@dataclasses.dataclass(frozen=True)
class Reading:
    """A model's predictions on some windows, and what its caches cost.

    Attributes:
        logits: float32 [B, S, V].
        kept: bytes in all caches after each token, int64 [B, S].
        read: bytes of them that the token's queries read, int64 [B, S].
    """

    logits: Array
    kept: Array
    read: Array


class TorchModel:
    """A causal language model whose layers all see their whole past.

    Args:
        directory: of a Hugging Face model.
    """

    def __init__(self, directory: Path) -> None:
        AttentionInterface.register(IMPLEMENTATION, self._attention)
        self.model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation=IMPLEMENTATION, local_files_only=True
        ).eval()
        self.layers: int = self.model.config.num_hidden_layers
        self._method: Method = Plain(FLOAT32)
        self._costs: list[tuple[Tensor, Tensor]] = []

    def read(self, windows: Array, method: Method) -> Iterator[Reading]:
        """Read windows as if token by token, a few of them at a time.

        Args:
            windows: token ids, int64 [N, S].
            method: attention of every layer.
        """
        with self._attending(method), torch.inference_mode():
            for begin in range(0, len(windows), _WINDOWS):
                self._costs = []
                logits = self.model(torch.from_numpy(windows[begin : begin + _WINDOWS]), use_cache=False).logits
                kept, read = (torch.stack(costs).sum(dim=0).numpy() for costs in zip(*self._costs, strict=True))
                yield Reading(logits.numpy(), kept, read)

    @contextmanager
    def _attending(self, method: Method) -> Iterator[None]:
        self._method = method
        try:
            yield
        finally:
            self._method = Plain(FLOAT32)

    def _attention(  # transformers calls it so
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        found = self._method(module.layer_idx, query * scaling, key, value)
        self._costs.append((found.kept, found.read))
        return found.output.transpose(1, 2).contiguous(), None


def query_rms(model: TorchModel, windows: Array) -> list[Array]:
    """Root mean square of every channel of the rotated queries, over a KV head's group: float32 [Hkv, D] per layer.

    Args:
        model: read with dense attention.
        windows: token ids, int64 [N, S].
    """
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    dense = Plain(FLOAT32)

    def watched(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Any:
        B, Hkv, _, D = key.shape
        # Methods get queries that were multiplied with the scale.
        grouped = query.double().reshape(B, Hkv, -1, D) * D**0.5
        sums[layer] = sums.get(layer, torch.zeros(Hkv, D)) + grouped.square().sum(dim=(0, 2))
        counts[layer] = counts.get(layer, 0) + B * grouped.shape[2]
        return dense(layer, query, key, value)

    for _ in model.read(windows, watched):
        pass
    return [np.sqrt(sums[layer] / counts[layer]).numpy().astype(np.float32) for layer in sorted(sums)]
