"""The generation loop: the prompt in one call or in chunks, then one call per token."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.cache import KVCache
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.runtime.sampling import Sampler


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a generation produced and what it took.

    Attributes:
        prompt_tokens: length of the prompt.
        tokens: the new token ids, the end-of-sequence token included if one came.
        stop: "eos", "until" or "length".
        prefill_seconds: wall time of the calls that read the prompt, with the choice of the first token.
        decode_seconds: wall time of the calls for the further tokens, with the choice of each.
        counters: raw counts over all calls and layers; None for a model without statistics outputs.
        cache_bytes_in_use: bytes of cache rows in use at the end, all layers.
        cache_bytes_allocated: bytes of the cache buffers at the end, all layers.
        cached_tokens: tokens in the cache at the end; the last new token was never run.
    """

    prompt_tokens: int
    tokens: list[int]
    stop: Literal["eos", "until", "length"]
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
    until: Callable[[Sequence[int]], bool] | None = None,
    on_token: Callable[[int], None] | None = None,
    prompt_chunk: int | None = None,
) -> Generation:
    """Continue a prompt.

    Args:
        model: an open model.
        prompt: token ids, at least one.
        max_new_tokens: stop after so many, ≥ 1.
        sampler: how tokens are chosen; greedy if None.
        end_ids: a token of these ends the text.
        until: called with all new tokens after each; True ends the text. Its time is not counted.
        on_token: called with every new token as it comes; its time is not counted.
        prompt_chunk: prompt tokens per call, ≥ 1; None reads the prompt in one call. Logits [1, S, V] and activations
            grow with it. With prefill "exact" a later call reads as k̂ what left the window before it, where one call
            would read it exactly (docs/spec.md section 3); what lies in the caches is the same.

    Raises:
        DeltaLLMError: for an empty prompt, max_new_tokens or prompt_chunk below 1, and where ONNX Runtime cannot run a
            call.
    """
    if not prompt:
        raise DeltaLLMError("The prompt holds no token: give at least one character.")
    if max_new_tokens < 1:
        raise DeltaLLMError(f"max-new-tokens is {max_new_tokens}: give a whole number of at least 1.")
    if prompt_chunk is not None and prompt_chunk < 1:
        raise DeltaLLMError(f"prompt-chunk is {prompt_chunk}: give a whole number of at least 1.")
    choose = sampler or Sampler()
    counters = Counters() if model.signature.statistics else None
    # The last new token is never run, so its row is never needed.
    cache = model.new_cache(limit=len(prompt) + max_new_tokens - 1)
    tokens: list[int] = []
    seconds = [0.0, 0.0]  # prefill, decode
    pending = list(prompt)
    while True:
        began = time.perf_counter()
        last, calls = _read(model, cache, pending, prompt_chunk or len(pending))
        token = choose(last)
        seconds[bool(tokens)] += time.perf_counter() - began
        for length, statistics in calls:
            if counters is None:
                break
            counters += Counters.from_statistics(statistics, cached_tokens=length, decoded_tokens=1 if tokens else 0)
        tokens.append(token)
        if on_token is not None:
            on_token(token)
        if token in end_ids or len(tokens) == max_new_tokens or (until is not None and until(tokens)):
            break
        pending = [token]
    return Generation(
        prompt_tokens=len(prompt),
        tokens=tokens,
        stop="eos" if tokens[-1] in end_ids else "length" if len(tokens) == max_new_tokens else "until",
        prefill_seconds=seconds[0],
        decode_seconds=seconds[1],
        counters=counters,
        cache_bytes_in_use=cache.bytes_in_use,
        cache_bytes_allocated=cache.bytes_allocated,
        cached_tokens=cache.length,
    )


def _read(
    model: DecoderModel, cache: KVCache, tokens: Sequence[int], chunk: int
) -> tuple[npt.NDArray[np.float32], list[tuple[int, list[npt.NDArray[np.int64]]]]]:
    """Run tokens behind those in the cache, so many per call.

    Returns:
        The last token's logits float32 [V], and of every call the tokens in the cache after it and its statistics.
    """
    calls = []
    last = np.empty(0, np.float32)
    for begin in range(0, len(tokens), chunk):
        logits, statistics = model.step(np.array([tokens[begin : begin + chunk]], np.int64), cache)
        calls.append((cache.length, statistics))
        # A view would keep the logits of all tokens of the call beside those of the next one.
        last = logits[0, -1].copy()
        del logits
    return last, calls
