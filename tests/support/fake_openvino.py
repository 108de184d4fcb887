"""Stands in for the package openvino: its paged attention in numpy, on the caller's memory.

Only what `bench.openvino_paged.PagedLayer` calls. Caches keep float16 rows in blocks of 32 tokens.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.geometry import Geometry

BLOCK = 32


@dataclasses.dataclass
class Kind:
    """An element type."""

    name: str

    bitwidth = 16

    def to_string(self) -> str:
        return self.name


@dataclasses.dataclass
class Axis:
    """One axis of a partial shape; None is dynamic."""

    length: int | None

    def get_length(self) -> int:
        assert self.length is not None
        return self.length


class Tensor:
    """An array, or bytes seen as an array of a shape and type; both share the caller's memory."""

    def __init__(
        self, array: npt.NDArray[Any], shape: Any = None, kind: Any = None, *, shared_memory: bool = False
    ) -> None:
        assert shared_memory or kind is not None
        assert array.flags.c_contiguous
        self.array = array if kind is None else array.reshape(-1).view(np.float16).reshape(shape)
        assert np.shares_memory(self.array, array)


class Request:
    """Attention per sequence over the blocks that its table names, after writing the new rows there."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._tensors: dict[str, npt.NDArray[Any]] = {}
        self._output: npt.NDArray[np.float32] | None = None

    def set_tensor(self, name: str, tensor: Tensor) -> None:
        self._tensors[name] = tensor.array

    def set_output_tensor(self, tensor: Tensor) -> None:
        self._output = tensor.array

    def infer(self, *, share_outputs: bool) -> None:
        assert share_outputs
        given = self._tensors
        begins, tables = given["subsequence_begins"], given["block_indices_begins"]
        outputs = [
            self._sequence(
                slice(begins[i], begins[i + 1]), int(past), given["block_indices"][tables[i] : tables[i + 1]]
            )
            for i, past in enumerate(given["past_lens"])
        ]
        lengths = given["past_lens"] + np.diff(begins)
        assert given["max_context_len"] >= lengths.max()
        if self._output is not None:
            self._output[...] = np.concatenate(outputs)

    def _sequence(self, new: slice, past: int, blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        geometry, total = self._geometry, past + new.stop - new.start
        size, group = geometry.head_size, geometry.heads // geometry.kv_heads
        seen = []
        for name in ("key", "value"):
            pool = self._tensors[f"{name}_cache"]
            for position, row in zip(range(past, total), self._tensors[name][new], strict=True):
                pool[blocks[position // BLOCK], :, position % BLOCK] = row.reshape(geometry.kv_heads, size)
            rows = pool[blocks].transpose(1, 0, 2, 3).reshape(geometry.kv_heads, -1, size)[:, :total]
            seen.append(np.repeat(rows.astype(np.float64), group, axis=0))
        query = self._tensors["query"][new].reshape(-1, geometry.heads, size).transpose(1, 0, 2)
        scores = query @ seen[0].transpose(0, 2, 1) / np.sqrt(size)
        scores[:, np.arange(total)[None] > np.arange(past, total)[:, None]] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        output: npt.NDArray[np.float64] = weights / weights.sum(axis=-1, keepdims=True) @ seen[1]
        return output.transpose(1, 0, 2).reshape(-1, geometry.heads * size)


class Compiled:
    """A compiled layer."""

    def __init__(self, geometry: Geometry, config: dict[str, Any], cache: str | None) -> None:
        self._geometry, self._config, self._cache = geometry, config, cache

    def create_infer_request(self) -> Request:
        return Request(self._geometry)

    def get_property(self, name: str) -> Kind:
        return Kind(self._config[name])

    def input(self, name: str) -> Any:
        assert name in ("key_cache", "value_cache")
        shape = [Axis(None), Axis(self._geometry.kv_heads), Axis(BLOCK), Axis(self._geometry.head_size)]
        kind = Kind(self._cache or self._config["KV_CACHE_PRECISION"])
        return types.SimpleNamespace(get_partial_shape=lambda: shape, get_element_type=lambda: kind)


def package(*, cache: str | None = None) -> types.ModuleType:
    """The module openvino.

    Args:
        cache: element type that it takes instead of the one asked for.
    """
    module: Any = types.ModuleType("openvino")
    module.__version__ = "0.0.0-fake"
    module.Tensor, module.Shape = Tensor, tuple
    module.Core = lambda: types.SimpleNamespace(
        compile_model=lambda geometry, device, config: Compiled(geometry, {"device": device, **config}, cache)
    )
    found: types.ModuleType = module
    return found
