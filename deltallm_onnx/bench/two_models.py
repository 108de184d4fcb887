"""Two whole models against each other: decode and prefill at given pasts, interleaved in one process."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.bench.peak_memory import run_child
from deltallm_onnx.bench.rounds import SPIN_SECONDS, Spread, clock, clock_name, interleave, quotients
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel, KVCache, context_length
from deltallm_onnx.runtime.environment import environment

#: Prompts are read again until so many seconds are over …
PREFILL_SECONDS = 10.0
#: … but at least and at most so often.
PREFILL_ROUNDS = (2, 7)
#: Steps that are not timed: the first calls allocate.
WARM_UP_STEPS = 2
#: Pasts that are measured where nobody says which, as far as the models' context allows.
USUAL_PASTS = (256, 1024, 4096)
#: Of the tokens.
SEED = 20250730


def _silent(_text: str) -> None:
    """Tell nobody."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        pasts: tokens in the cache before decoding, each ≥ 1.
        threads: intra-op threads, each ≥ 1.
        steps: decoded tokens per measurement, ≥ 1.
        chunk: tokens per call while the past is read; 0 = all in one call.
        memory: measure peak memory too, in a process per model.
    """

    pasts: tuple[int, ...]
    threads: tuple[int, ...]
    steps: int = 32
    chunk: int = 0
    memory: bool = True


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Both models at one past and one number of threads; times in seconds, ratios baseline / model per round."""

    past_tokens: int
    threads: int
    decode: tuple[Spread, Spread]
    decode_ratio: Spread
    prefill: tuple[Spread, Spread]
    prefill_ratio: Spread
    load: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; speeds are tokens per second at the median."""
        result: dict[str, Any] = {
            "past_tokens": self.past_tokens,
            "threads": self.threads,
            "clock": clock_name(self.threads),
            "load_before": round(self.load, 2),
        }
        for what, tokens, spreads, ratio in (
            ("decode", 1, self.decode, self.decode_ratio),
            ("prefill", self.past_tokens, self.prefill, self.prefill_ratio),
        ):
            result[what] = {
                name: {"seconds": spread.to_dict(), "tokens_per_second": float(f"{tokens / spread.median:.4g}")}
                for name, spread in zip(("model", "baseline"), spreads, strict=True)
            }
            result[what]["speedup"] = ratio.to_dict()
        return result


def read_tokens(model: DecoderModel, cache: KVCache, tokens: npt.NDArray[np.int64], chunk: int) -> None:
    """Run a prompt [B, S] in calls of `chunk` tokens, or in one call if that is 0."""
    size = chunk or tokens.shape[1]
    for begin in range(0, tokens.shape[1], size):
        model.step(tokens[:, begin : begin + size], cache)


def cache_mode(model: DecoderModel) -> str:
    """How the caches of a model grow: "updated in place", "copied each step", or "partly in place"."""
    modes = {tensor.in_place for tensor in model.signature.caches}
    return "partly in place" if len(modes) > 1 else "updated in place" if modes == {True} else "copied each step"


def bench_models(
    model: Path, baseline: Path, plan: Plan, *, progress: Callable[[str], None] = _silent
) -> tuple[list[Measurement], dict[str, Any]]:
    """Measure two models that read the same tokens.

    Args:
        model: the .onnx file that is judged.
        baseline: the .onnx file it is held against.
        plan: what to measure.
        progress: told what is under way.

    Returns:
        The measurements, and the whole run as one JSON-ready record.

    Raises:
        DeltaLLMError: for a model this runtime cannot run, for different vocabularies, and for a past beyond a
            model's context.
    """
    paths = (model, baseline)
    for path in paths:
        _check_context(path, plan)
    measurements: list[Measurement] = []
    about: list[dict[str, Any]] = []
    vocabulary = 0
    for threads in plan.threads:
        progress(f"Opening both models with {threads} threads")
        pair = tuple(DecoderModel(path, threads=threads) for path in paths)
        about = [{"path": str(m.path), "cache_mode": cache_mode(m), "layers": m.signature.layers} for m in pair]
        vocabulary = _shared_vocabulary(*pair)
        for past in plan.pasts:
            progress(f"Measuring {past} past tokens, {threads} threads")
            measurements.append(_measure(pair, vocabulary, past, threads, plan))
        del pair
    if plan.memory:
        for path, facts in zip(paths, about, strict=True):
            progress(f"Measuring the memory of {path}")
            facts.update(_memory(path, plan, vocabulary))
    record = {
        "benchmark": "two models",
        **environment(),
        "steps": plan.steps,
        "chunk": plan.chunk,
        "models": dict(zip(("model", "baseline"), about, strict=True)),
        "results": [measurement.to_dict() for measurement in measurements],
    }
    return measurements, record


def usual_pasts(paths: Sequence[Path], steps: int) -> tuple[int, ...]:
    """Those of `USUAL_PASTS` that the models' configurations leave room for, `steps` further tokens included.

    Raises:
        DeltaLLMError: where none is left.
    """
    contexts = [context for path in paths if (context := context_length(path.parent)) is not None]
    pasts = tuple(past for past in USUAL_PASTS if all(_positions(past, steps) <= context for context in contexts))
    if not pasts:
        raise DeltaLLMError(
            f"A context of {min(contexts)} tokens has no room for {USUAL_PASTS[0]} past tokens and {steps} steps: "
            "give a shorter --past, or fewer --steps."
        )
    return pasts


def _positions(past: int, steps: int) -> int:
    return past + WARM_UP_STEPS + steps


def _check_context(path: Path, plan: Plan) -> None:
    needed = _positions(max(plan.pasts), plan.steps)
    context = context_length(path.parent)
    if context is not None and needed > context:
        raise DeltaLLMError(
            f"{max(plan.pasts)} past tokens and {plan.steps} steps need {needed} positions, but the configuration "
            f"beside {path} allows {context}: give shorter pasts with --past, or fewer --steps."
        )


def _shared_vocabulary(model: DecoderModel, baseline: DecoderModel) -> int:
    sizes = []
    for decoder in (model, baseline):
        logits, _ = decoder.step(np.zeros((1, 1), np.int64), decoder.new_cache(limit=1))
        sizes.append(int(logits.shape[-1]))
    if sizes[0] != sizes[1]:
        raise DeltaLLMError(
            f"{model.path} has {sizes[0]} tokens in its vocabulary and {baseline.path} has {sizes[1]}: "
            "compare two forms of the same model."
        )
    return sizes[0]


def _measure(pair: tuple[DecoderModel, ...], vocabulary: int, past: int, threads: int, plan: Plan) -> Measurement:
    random = np.random.default_rng(SEED)
    tokens = random.integers(0, vocabulary, (1, _positions(past, plan.steps)))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    caches: dict[str, KVCache] = {}
    names = ("model", "baseline")
    now = clock(threads)

    def prefill(name: str, decoder: DecoderModel) -> float:
        caches.pop(name, None)  # before the next one is allocated
        cache = decoder.new_cache(limit=tokens.shape[1])
        _let_others_sleep(threads)
        began = now()
        read_tokens(decoder, cache, tokens[:, :past], plan.chunk)
        took = now() - began
        caches[name] = cache
        return took

    def decode(name: str, decoder: DecoderModel) -> float:
        cache = caches[name]
        token = tokens[:, cache.length : cache.length + 1]
        _let_others_sleep(threads)
        began = now()
        decoder.step(token, cache)
        return now() - began

    decoders = dict(zip(names, pair, strict=True))
    prefills = interleave(
        {name: functools.partial(prefill, name, decoder) for name, decoder in decoders.items()},
        seconds=PREFILL_SECONDS,
        least_rounds=PREFILL_ROUNDS[0],
        most_rounds=PREFILL_ROUNDS[1],
    )
    steps = interleave(
        {name: functools.partial(decode, name, decoder) for name, decoder in decoders.items()},
        seconds=0,
        least_rounds=WARM_UP_STEPS + plan.steps,
        most_rounds=WARM_UP_STEPS + plan.steps,
    )
    steps = {name: times[WARM_UP_STEPS:] for name, times in steps.items()}
    return Measurement(
        past_tokens=past,
        threads=threads,
        decode=(Spread.of(steps["model"]), Spread.of(steps["baseline"])),
        decode_ratio=quotients(steps["baseline"], steps["model"]),
        prefill=(Spread.of(prefills["model"]), Spread.of(prefills["baseline"])),
        prefill_ratio=quotients(prefills["baseline"], prefills["model"]),
        load=load,
    )


def _let_others_sleep(threads: int) -> None:
    """Wait until the worker threads of the other session no longer spin on the cores this one needs."""
    if threads > 1:
        time.sleep(SPIN_SECONDS)


def _memory(path: Path, plan: Plan, vocabulary: int) -> dict[str, Any]:
    past = max(plan.pasts)
    request = {
        "model": str(path),
        "past": past,
        "threads": max(plan.threads),
        "chunk": plan.chunk,
        "vocabulary": vocabulary,
    }
    return {"memory_past_tokens": past, **run_child("deltallm_onnx.bench.memory_child", request)}
