"""What transformers' eager attention says about a model, as sequences of calls any ONNX export can be put through.

A scenario is a list of steps that share a cache: the caller starts with an empty past, and feeds each step's present to
the next. `run` does that for a session with the inputs and outputs of docs/architecture.md, "The dense graph".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from deltallm_onnx.export.quiet import quiet

#: (name, real tokens per row, new tokens per step); all but one outgrow the windows of support.tiny_models (7 and 9).
SHAPES: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("prefill", (14,), (14,)),
    ("short prefill", (5,), (5,)),
    ("decode past the window", (17,), (13, 1, 1, 1, 1)),
    ("chunked prefill", (22,), (4, 11, 7)),
    ("left padding", (20, 12, 15), (16, 1, 3)),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """One call.

    Attributes:
        input_ids: int64 [B, S].
        attention_mask: int64 [B, P+S].
        position_ids: int64 [B, S].
        logits: float32 [B, S, V], from transformers.
        real: bool [B, S], false where the token is padding and its logits mean nothing.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    real: NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Calls that follow each other on one cache."""

    name: str
    steps: tuple[Step, ...]


def load_eager(directory: Any) -> Any:
    """The model of a directory with transformers' eager attention, float32."""
    with quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    if hasattr(model, "set_experts_implementation"):  # transformers 5, whose default kernel wants multiples of 4
        model.set_experts_implementation("eager")
    return model.eval()


def scenarios(model: Any, seed: int = 0) -> Iterator[Scenario]:
    """Feeds and expected logits for prefill, decode, chunks and padded batches.

    Args:
        model: from `load_eager`.
        seed: of the token ids.
    """
    generator = np.random.default_rng(seed)
    vocabulary = model.get_input_embeddings().num_embeddings
    for name, lengths, new_tokens in SHAPES:
        B, T = len(lengths), sum(new_tokens)
        ids = generator.integers(3, vocabulary, (B, T))
        mask = np.zeros((B, T), np.int64)
        for row, length in enumerate(lengths):
            mask[row, T - length :] = 1
        yield Scenario(name, tuple(_steps(model, ids, mask, new_tokens)))


def _steps(model: Any, ids: NDArray[np.int64], mask: NDArray[np.int64], new_tokens: Sequence[int]) -> Iterator[Step]:
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    # transformers' own sliding caches, which drop what the window has passed: nothing in common with the export's
    cache = transformers.DynamicCache(config=model.config)
    begin = 0
    for S in new_tokens:
        end = begin + S
        now = slice(begin, end)
        with torch.no_grad(), quiet():
            logits = model(
                input_ids=torch.from_numpy(ids[:, now]),
                attention_mask=torch.from_numpy(mask[:, :end]),
                position_ids=torch.from_numpy(positions[:, now]),
                past_key_values=cache,
                use_cache=True,
            ).logits.numpy()
        yield Step(ids[:, now], mask[:, :end], positions[:, now], logits, mask[:, now].astype(bool))
        begin = end


def run(session: Any, scenario: Scenario) -> list[NDArray[np.float32]]:
    """The logits [B, S, V] of each step from an ONNX Runtime session, its cache carried along.

    Cache inputs start with past length 0, in the type and the head sizes the session declares.
    """
    pasts = [x for x in session.get_inputs() if x.name.startswith("past_key_values.")]
    names = [x.name for x in session.get_outputs()]
    given = {x.name for x in session.get_inputs()}
    B = scenario.steps[0].input_ids.shape[0]
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    cache = {x.name: np.zeros((B, x.shape[1], 0, x.shape[3]), types[x.type]) for x in pasts}
    logits = []
    for step in scenario.steps:
        feeds = {
            "input_ids": step.input_ids,
            "attention_mask": step.attention_mask,
            "position_ids": step.position_ids,
            **cache,
        }
        outputs = dict(zip(names, session.run(None, {k: v for k, v in feeds.items() if k in given}), strict=True))
        logits.append(outputs["logits"])
        cache = {name: outputs[name.replace("past_key_values.", "present.")] for name in cache}
    return logits


def largest_error(session: Any, expected: Sequence[Scenario]) -> dict[str, float]:
    """Scenario → largest difference of any logit of a real token."""
    errors = {}
    for scenario in expected:
        got = run(session, scenario)
        errors[scenario.name] = max(
            float(np.abs(logits - step.logits)[step.real].max())
            for logits, step in zip(got, scenario.steps, strict=True)
        )
    return errors
