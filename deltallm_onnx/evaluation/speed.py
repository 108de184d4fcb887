"""Decode speed behind a prompt, the models in turns."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.bench.rounds import SPIN_SECONDS, Spread, interleave
from deltallm_onnx.bench.two_models import cache_mode, read_tokens
from deltallm_onnx.runtime.cache import KVCache
from deltallm_onnx.runtime.model import DecoderModel

#: Decode steps that are timed, and those before them that are not: the first calls allocate.
STEPS, WARM_UP_STEPS = 32, 2


@dataclasses.dataclass(frozen=True)
class Speed:
    """Decode steps of one model, in wall time.

    Attributes:
        prompt_tokens: tokens in the cache before the first timed step.
        steps: timed steps.
        tokens_per_second: at the median and the quartiles of a step.
        caches: how they grow, as `cache_mode` says: a copy of all of them in each step takes time too.
    """

    prompt_tokens: int
    steps: int
    tokens_per_second: Spread
    caches: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        spread = self.tokens_per_second.to_dict()
        return {
            "prompt_tokens": self.prompt_tokens,
            "steps": self.steps,
            "tokens_per_second": spread,
            "caches": self.caches,
        }


def decode_speed(
    models: Mapping[str, DecoderModel], window: npt.NDArray[np.int64], steps: int, *, chunk: int = 0
) -> dict[str, Speed]:
    """Time decode steps behind the first tokens of a window; every round takes one step of each model.

    Args:
        models: open models by name.
        window: token ids [S]; the last ones of them, after the prompt, are what is decoded.
        steps: to time, 1 … S − WARM_UP_STEPS − 1.
        chunk: tokens of the prompt per call; 0 = all in one.
    """
    prompt = len(window) - WARM_UP_STEPS - steps
    caches = {name: model.new_cache(limit=len(window)) for name, model in models.items()}
    for name, model in models.items():
        read_tokens(model, caches[name], window[None, :prompt], chunk)

    def step(model: DecoderModel, cache: KVCache) -> float:
        token = window[None, cache.length : cache.length + 1]
        if len(models) > 1:
            # The idle workers of the other session spin on the cores that this one needs.
            time.sleep(SPIN_SECONDS)
        began = time.perf_counter()
        model.step(token, cache)
        return time.perf_counter() - began

    rounds = WARM_UP_STEPS + steps
    times = interleave(
        {name: functools.partial(step, model, caches[name]) for name, model in models.items()},
        seconds=0,
        least_rounds=rounds,
        most_rounds=rounds,
    )
    found = {}
    for name, taken in times.items():
        seconds = Spread.of(taken[WARM_UP_STEPS:])
        speeds = Spread(1 / seconds.median, 1 / seconds.upper, 1 / seconds.lower)
        found[name] = Speed(prompt + WARM_UP_STEPS, steps, speeds, cache_mode(models[name]))
    return found
