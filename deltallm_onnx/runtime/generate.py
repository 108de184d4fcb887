"""The generation loop: one prefill call, then one call per token."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import numpy as np

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.runtime.sampling import Sampler


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a generation produced and what it took.

    Attributes:
        prompt_tokens: length of the prompt.
        tokens: the new token ids, the end-of-sequence token included if one came.
        stop: "eos" or "length".
        prefill_seconds: wall time of the call that read the prompt, with the choice of the first token.
        decode_seconds: wall time of the calls for the further tokens, with the choice of each.
        counters: raw counts over all calls and layers; None for a model without statistics outputs.
        cache_bytes_in_use: bytes of cache rows in use at the end, all layers.
        cache_bytes_allocated: bytes of the cache buffers at the end, all layers.
        cached_tokens: tokens in the cache at the end; the last new token was never run.
    """

    prompt_tokens: int
    tokens: list[int]
    stop: Literal["eos", "length"]
    prefill_seconds: float
    decode_seconds: float
    counters: Counters | None
    cache_bytes_in_use: int
    cache_bytes_allocated: int
    cached_tokens: int

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_tokens_per_second(self) -> float | None:
        """New tokens after the first per second; None with a single new token."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else None


def generate(
    model: DecoderModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    sampler: Sampler | None = None,
    end_ids: AbstractSet[int] = frozenset(),
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        model: an open model.
        prompt: token ids, at least one.
        max_new_tokens: stop after so many, ≥ 1.
        sampler: how tokens are chosen; greedy if None.
        end_ids: a token of these ends the text.
        on_token: called with every new token as it comes; its time is not counted.

    Raises:
        DeltaLLMError: for an empty prompt or max_new_tokens below 1, and where ONNX Runtime cannot run a call.
    """
    if not prompt:
        raise DeltaLLMError("The prompt holds no token: give at least one character.")
    if max_new_tokens < 1:
        raise DeltaLLMError(f"max-new-tokens is {max_new_tokens}: give a whole number of at least 1.")
    choose = sampler or Sampler()
    counters = Counters() if model.signature.statistics else None
    # The last new token is never run, so its row is never needed.
    cache = model.new_cache(limit=len(prompt) + max_new_tokens - 1)
    tokens: list[int] = []
    seconds = [0.0, 0.0]  # prefill, decode
    pending = list(prompt)
    while True:
        began = time.perf_counter()
        logits, statistics = model.step(np.array([pending], np.int64), cache)
        token = choose(logits[0, -1])
        seconds[bool(tokens)] += time.perf_counter() - began
        if counters is not None:
            counters += Counters.from_statistics(
                statistics, cached_tokens=cache.length, decoded_tokens=1 if tokens else 0
            )
        tokens.append(token)
        if on_token is not None:
            on_token(token)
        if token in end_ids or len(tokens) == max_new_tokens:
            break
        pending = [token]
    return Generation(
        prompt_tokens=len(prompt),
        tokens=tokens,
        stop="eos" if tokens[-1] in end_ids else "length",
        prefill_seconds=seconds[0],
        decode_seconds=seconds[1],
        counters=counters,
        cache_bytes_in_use=cache.bytes_in_use,
        cache_bytes_allocated=cache.bytes_allocated,
        cached_tokens=cache.length,
    )
