"""Calls that com.microsoft.GroupQueryAttention and DeltaAttention both understand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class GroupQueryCase:
    """One call. `lengths` are the valid tokens per batch row after it; `capacity` the rows of the past's buffer.

    A prompt has as many new tokens as the longest length; anything else continues a past.
    """

    name: str
    heads: int = 6
    kv_heads: int = 2
    head_size: int = 16
    new_tokens: int = 1
    lengths: tuple[int, ...] = (9,)
    capacity: int | None = None  # None: exactly the past
    packed: bool = False
    rotary: str = ""  # "", "half", "interleaved"
    rotary_size: int = 16
    position_ids: bool = False
    bias: tuple[bool, bool] | None = None  # whether batch and heads have their own
    head_sink: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()
    dtype: str = "float32"

    @property
    def total(self) -> int:
        return max(self.lengths)

    @property
    def is_prompt(self) -> bool:
        return self.new_tokens == self.total

    @property
    def past(self) -> tuple[int, ...]:
        return tuple(0 if self.is_prompt else length - self.new_tokens for length in self.lengths)

    def real_new_tokens(self, row: int) -> int:
        return self.lengths[row] - self.past[row]

    def node_attributes(self) -> dict[str, Any]:
        attributes = {"num_heads": self.heads, "kv_num_heads": self.kv_heads, **dict(self.attributes)}
        if self.rotary:
            attributes |= {"do_rotary": 1, "rotary_interleaved": int(self.rotary == "interleaved")}
        return attributes

    def feeds(self, rng: np.random.Generator) -> dict[str, Array]:
        """The shared inputs by GroupQueryAttention's names."""
        B, S, D = len(self.lengths), self.new_tokens, self.head_size

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32).astype(self.dtype)

        if self.packed:
            feeds = {"query": normal(B, S, (self.heads + 2 * self.kv_heads) * D)}
        else:
            feeds = {
                "query": normal(B, S, self.heads * D),
                "key": normal(B, S, self.kv_heads * D),
                "value": normal(B, S, self.kv_heads * D),
            }
        rows = max(self.past) if self.capacity is None else self.capacity
        for name in ("past_key", "past_value"):
            feeds[name] = normal(B, self.kv_heads, rows, D)
        feeds["seqlens_k"] = np.array(self.lengths, np.int32) - 1
        feeds["total_sequence_length"] = np.array([self.total], np.int32)
        if self.rotary:
            angles = rng.uniform(0, 6.28, (2 * max(self.total, rows) + 2, self.rotary_size // 2))
            feeds["cos_cache"] = np.cos(angles).astype(self.dtype)
            feeds["sin_cache"] = np.sin(angles).astype(self.dtype)
        if self.position_ids:
            # GroupQueryAttention reads a prompt's first id only and counts on from there.
            feeds["position_ids"] = rng.integers(1, self.total, (B, 1)) + np.arange(S)
        if self.bias is not None:
            own_batch, own_heads = self.bias
            feeds["attention_bias"] = normal(B if own_batch else 1, self.heads if own_heads else 1, S, self.total)
        if self.head_sink:
            feeds["head_sink"] = normal(self.heads)
        return feeds


PROMPT = {"new_tokens": 9, "lengths": (9,)}
RAGGED_PROMPT = {"new_tokens": 11, "lengths": (11, 4, 8)}
DECODE = {"new_tokens": 1, "lengths": (12,)}
RAGGED_DECODE = {"new_tokens": 1, "lengths": (12, 5, 33)}
CHUNK = {"new_tokens": 5, "lengths": (18,)}
LONG_PROMPT = {"new_tokens": 300, "lengths": (300,)}
LONG_DECODE = {"new_tokens": 1, "lengths": (1500,)}
PHASES: dict[str, dict[str, Any]] = {
    "prompt": PROMPT,
    "ragged prompt": RAGGED_PROMPT,
    "decode": DECODE,
    "ragged decode": RAGGED_DECODE,
    "chunk": CHUNK,
    "long prompt": LONG_PROMPT,
    "long decode": LONG_DECODE,
}

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"packed": True},
    "group of 1": {"heads": 5, "kv_heads": 5},
    "group of 3": {"heads": 3, "kv_heads": 1},
    "group of 4": {"heads": 8, "kv_heads": 2},
    "group of 7": {"heads": 14, "kv_heads": 2},
    "head size 40": {"head_size": 40},
    "head size 24": {"head_size": 24, "packed": True},
    "head size 128": {"head_size": 128},
    "rotary": {"rotary": "half"},
    "rotary interleaved": {"rotary": "interleaved", "packed": True},
    "rotary partial": {"rotary": "half", "rotary_size": 16, "head_size": 48},
    "rotary interleaved partial": {"rotary": "interleaved", "rotary_size": 32, "head_size": 48},
    "scale": {"attributes": (("scale", 0.37),)},
    "softcap": {"attributes": (("softcap", 1.5),)},
    "local window": {"attributes": (("local_window_size", 4),)},
    "head sink": {"head_sink": True},
    "bias": {"bias": (False, False)},
    "bias per head": {"bias": (True, True)},
    "everything": {
        "rotary": "half",
        "packed": True,
        "heads": 12,
        "kv_heads": 3,
        "head_sink": True,
        "attributes": (("softcap", 3.0), ("local_window_size", 6), ("scale", 0.2)),
    },
}


def all_cases() -> list[GroupQueryCase]:
    """Every feature in every phase, each also with a past buffer longer than needed."""
    cases = []
    for phase, tokens in PHASES.items():
        for feature, options in FEATURES.items():
            merged = {**tokens, **options}
            cases.append(GroupQueryCase(f"{feature}, {phase}", **merged))
            cases.append(
                GroupQueryCase(f"{feature}, {phase}, longer buffer", capacity=max(tokens["lengths"]) + 3, **merged)
            )
    return cases
