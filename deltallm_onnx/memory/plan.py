"""How much memory a decoder takes at most for a context, from its .onnx file and without loading its weights.

The sum is an upper bound of the growth of the process from before the model is opened: the tests hold it between
the measured peak and one and a half times of it. docs/memory.md says what each part is based on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.memory.activations import CallMemory, call_memory
from deltallm_onnx.memory.call_shapes import CallSizes
from deltallm_onnx.memory.weights import WeightMemory, weight_memory
from deltallm_onnx.runtime.cache import CacheTensor
from deltallm_onnx.runtime.model_file import read_model_file
from deltallm_onnx.runtime.signature import read_signature

#: ONNX Runtime itself: pages of its code, its tables of operators, the parsed graph. Measured: 13 to 16 MB with version
#: 1.32 on x86-64 (docs/memory.md).
RUNTIME_BYTES = 18_000_000
#: What an allocator holds beyond the intermediate tensors alive at once, as a share of them: each region that ONNX
#: Runtime's arena takes is twice as large as the one before, and tensors do not fill them. Measured: up to 0.8. The
#: system's allocator keeps what it was given back too, so a session without the arena gets the same bound.
ARENA_SHARE = 1.0


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Peak memory of one sequence batch, in bytes.

    Attributes:
        context: tokens in the caches at the end.
        batch: B.
        call_tokens: new tokens S of the largest call: the whole prompt, or a chunk of it.
        runtime_bytes: ONNX Runtime itself.
        weights: of the weights.
        cache_bytes: of the cache buffers, what `KVCache.bytes_allocated` will be.
        cache_copy_bytes: of what is there twice for a moment: the buffer that grows, or, where past and present
            cannot share a buffer, all of them.
        cache_types: the formats and element types of the caches.
        call: of the largest call.
    """

    context: int
    batch: int
    call_tokens: int
    runtime_bytes: int
    weights: WeightMemory
    cache_bytes: int
    cache_copy_bytes: int
    cache_types: tuple[str, ...]
    call: CallMemory

    @property
    def arena_bytes(self) -> int:
        """What the allocator holds without using it."""
        return math.ceil(ARENA_SHARE * self.call.activations)

    @property
    def held_bytes(self) -> int:
        """Of the caches, with what is there twice."""
        return self.cache_bytes + self.cache_copy_bytes

    @property
    def working_bytes(self) -> int:
        """Of the activations, with what the allocator holds unused."""
        return self.call.activations + self.arena_bytes

    @property
    def opening_bytes(self) -> int:
        """While the model is opened."""
        return self.runtime_bytes + self.weights.resident + self.weights.largest - self.weights.looked_up

    @property
    def running_bytes(self) -> int:
        """During the largest call."""
        return self.runtime_bytes + self.weights.resident + self.held_bytes + self.call.logits + self.working_bytes

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return max(self.opening_bytes, self.running_bytes)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values, with both sums and the peak."""
        names = ("arena_bytes", "opening_bytes", "running_bytes", "total_bytes")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in names}}


def plan_memory(
    path: Path,
    context: int,
    *,
    batch: int = 1,
    prompt: int | None = None,
    prompt_chunk: int | None = None,
) -> MemoryPlan:
    """Plan the memory of a model that is run with the operator library.

    Args:
        path: the .onnx file.
        context: tokens in the caches at the end, ≥ 1.
        batch: B, ≥ 1.
        prompt: tokens of the prompt; the whole context if None.
        prompt_chunk: prompt tokens per call; None reads the prompt in one call.

    Raises:
        DeltaLLMError: for numbers below 1, for a file that is no decoder this runtime knows, and for a context that the
            model's fixed cache rows have no room for.
    """
    for name, value in (("context", context), ("batch", batch), ("prompt", prompt), ("prompt-chunk", prompt_chunk)):
        if value is not None and value < 1:
            raise DeltaLLMError(f"{name} is {value}: give a whole number of at least 1.")
    model = read_model_file(path)
    caches = read_signature(model, str(path), use_library=True).caches
    # The caches first: they refuse a context they have no room for.
    cache_bytes = batch * sum(_rows(cache, context) * cache.row_bytes for cache in caches)
    call_tokens = min(prompt_chunk or context, prompt or context, context)
    return MemoryPlan(
        context=context,
        batch=batch,
        call_tokens=call_tokens,
        runtime_bytes=RUNTIME_BYTES,
        weights=weight_memory(model),
        cache_bytes=cache_bytes,
        cache_copy_bytes=batch * _copied(caches, context),
        cache_types=tuple(sorted({_type(cache) for cache in caches})),
        # The last chunk has the longest past.
        call=call_memory(model, CallSizes(batch, call_tokens, prompt or context)),
    )


def _rows(cache: CacheTensor, tokens: int) -> int:
    """Rows of a buffer that grew to so many tokens and never further."""
    return cache.capacity_for(tokens) if cache.in_place else tokens


def _copied(caches: Iterable[CacheTensor], context: int) -> int:
    """Bytes of one sequence that are there twice for a moment."""
    shared = [c.capacity_for(context) * c.row_bytes for c in caches if c.in_place and c.rows is None]
    apart = sum(context * c.row_bytes for c in caches if not c.in_place)
    return apart + max(shared, default=0)


def _type(cache: CacheTensor) -> str:
    return str(cache.dtype) if cache.packed is None else cache.packed.cache_format
