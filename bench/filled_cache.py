"""The caches of a whole model, filled without reading a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnxruntime as ort

from bench.contenders import Contender, capacity_for
from bench.geometry import Geometry
from bench.past import for_every_head, one_head_caches
from deltallm_onnx.runtime import CacheTensor, KVCache


class FilledCache(KVCache):
    """Caches with `past` tokens in every layer, and room for `steps` more, which never move.

    A prompt of 16384 tokens takes minutes to read; what decoding costs depends on its length only.

    Args:
        tensors: every cache of the model, all updated in place.
        contender: the model's attention.
        geometry: of the model.
        past: tokens.
        steps: tokens that will follow.
    """

    def __init__(
        self, tensors: Sequence[CacheTensor], contender: Contender, geometry: Geometry, *, past: int, steps: int
    ) -> None:
        super().__init__(())
        capacity = capacity_for(contender, geometry, past + steps)
        heads = dict(zip(("key", "value"), one_head_caches(contender, geometry, past, capacity), strict=True))
        self._layers = tuple(tensors)
        self._filled = {
            tensor.past: ort.OrtValue.ortvalue_from_numpy(
                for_every_head(heads[tensor.past.rsplit(".", 1)[1]], geometry)
            )
            for tensor in tensors
        }
        self._bytes = len(self._layers) * geometry.kv_heads * heads["key"].nbytes
        self._tokens = past

    @property
    def length(self) -> int:
        """Tokens in the caches."""
        return self._tokens

    @property
    def bytes_allocated(self) -> int:
        """Bytes of all buffers."""
        return self._bytes

    def bind(self, binding: Any, new_tokens: int) -> list[str]:
        """Bind every buffer as past and as present."""
        del new_tokens
        for tensor in self._layers:
            binding.bind_ortvalue_input(tensor.past, self._filled[tensor.past])
            binding.bind_ortvalue_output(tensor.present, self._filled[tensor.past])
        return [tensor.present for tensor in self._layers]

    def advance(self, new_tokens: int, outputs: dict[str, ort.OrtValue]) -> None:
        """Count the tokens of a call."""
        del outputs
        self._tokens += new_tokens
