"""Random calls of the DeltaAttention operator, drawn over every attribute and every way to pass lengths.

Half of the cases lie on a coarse grid of binary fractions: there every difference and sum is exact, so ties |δ| = θ
occur and every implementation must decide them alike.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from deltallm_onnx.reference import RowLengths, delta_attention, hold, resolve_lengths

MAX_POSITIONS = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        inputs: the operator's inputs by name; what is absent is not passed.
        attributes: the operator's attributes by name, all of them.
    """

    inputs: dict[str, np.ndarray]
    attributes: dict[str, Any]

    def expected(self, **changes: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What the oracle gives; `changes` replace inputs or attributes."""
        arguments: dict[str, Any] = {"key": None, "value": None, **self.inputs, **self.attributes}
        return delta_attention(**{**arguments, **changes})

    @property
    def new_tokens(self) -> int:
        return self.inputs["query"].shape[1]

    @property
    def lengths(self) -> RowLengths:
        past = self.inputs.get("past_key")
        return resolve_lengths(
            self.inputs["query"].shape[0],
            self.new_tokens,
            0 if past is None else past.shape[2],
            seqlens_k=self.inputs.get("seqlens_k"),
            total_sequence_length=self.inputs.get("total_sequence_length"),
            attention_mask=self.inputs.get("attention_mask"),
        )

    def specified_queries(self) -> np.ndarray:
        """bool [B, S]: queries whose output the specification fixes.

        A query behind its row's length sees keys, but with rotary embedding its own position is not specified, and
        the case may have filled it with NaN.
        """
        rows = self.lengths
        return (rows.past[:, None] + np.arange(self.new_tokens)) < rows.length[:, None]

    def specified_rows(self, capacity: int) -> np.ndarray:
        """bool [B, capacity]: rows of the present caches that the specification fixes."""
        rows, row = self.lengths, np.arange(capacity)
        return (row >= rows.start[:, None]) & (row < rows.length[:, None])


@st.composite
def cases(draw: st.DrawFn, *, preallocated: bool = False, **fixed: Any) -> Case:
    """A random call.

    Args:
        draw: given by hypothesis.
        preallocated: the past has rows for all tokens of the call, so that it can be updated in place.
        fixed: attributes that are not drawn.
    """
    attributes = {
        "kv_num_heads": draw(st.integers(1, 3)),
        "scale": draw(st.sampled_from([0.0, 0.35])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 2.5])),
        "local_window_size": draw(st.sampled_from([-1, -1, 1, 5, 11])),
        "do_rotary": draw(st.integers(0, 1)),
        "rotary_interleaved": draw(st.integers(0, 1)),
        "delta_window": draw(st.sampled_from([0, 1, 3, 6, 40])),
        "sinks": draw(st.sampled_from([0, 0, 1, 2, 5])),
        "granularity": draw(st.sampled_from(["element", "row"])),
        "row_rule": draw(st.sampled_from(["relative", "absolute"])),
        "refresh": draw(st.sampled_from([0, 0, 1, 4])),
        "v_skip": draw(st.sampled_from([0.0, 0.0, 0.02, 0.4])),
        "prefill": draw(st.sampled_from(["exact", "delta"])),
        "cache_format": draw(st.sampled_from(["float32", "float16"])),
        **fixed,
    }
    attributes["num_heads"] = attributes["kv_num_heads"] * draw(st.integers(1, 4))
    shape = {
        "B": draw(st.integers(1, 3)),
        "S": draw(st.one_of(st.just(1), st.integers(1, 9))),
        "P": draw(st.one_of(st.just(0), st.integers(0, 17))),
        "D": draw(st.integers(1, 13)),
        "spare": draw(st.sampled_from([0, 0, 1, 5])),
    }
    kinds = ["mask", "seqlens", "prompt", "seqlens+mask"]
    if preallocated:
        shape["spare"] += shape["S"]
    else:
        kinds.append("none")
    choices = {
        "lengths": draw(st.sampled_from(kinds)),
        "query_type": draw(st.sampled_from(["float32", "float16"])),
        "grid": draw(st.booleans()),
        "poison": draw(st.booleans()),
        "packed": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "head_sink": draw(st.booleans()),
        "position_ids": draw(st.booleans()),
        "row_weight": draw(st.booleans()),
        "per_channel": draw(st.booleans()),
    }
    return _build(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), attributes, **shape, **choices)


def key_rows(rng: np.random.Generator, shape: tuple[int, ...], *, grid: bool) -> np.ndarray:
    """Keys [..., N, D] that move little from row to row, so that a threshold has something to hold."""
    steps = rng.integers(-3, 4, shape) / 8 if grid else rng.normal(0, 0.3, shape)
    moving = rng.random(shape) < 0.6
    whole_rows = rng.random((*shape[:-1], 1)) < 0.75
    walk = np.cumsum(np.where(moving & whole_rows, steps, 0), axis=-2)
    base = rng.integers(-8, 9, (*shape[:-2], 1, shape[-1])) / 8
    # Kept small enough that every grid value is exact in float16 too.
    return np.clip(base + walk, -4, 4).astype(np.float32)


def _build(
    rng: np.random.Generator,
    attributes: dict[str, Any],
    *,
    B: int,
    S: int,
    P: int,
    D: int,
    spare: int,
    lengths: str,
    query_type: str,
    grid: bool,
    poison: bool,
    packed: bool,
    bias: bool,
    head_sink: bool,
    position_ids: bool,
    row_weight: bool,
    per_channel: bool,
) -> Case:
    Hq, Hkv = attributes["num_heads"], attributes["kv_num_heads"]
    inputs: dict[str, np.ndarray] = {}
    if lengths == "prompt":
        P = 0
    inputs.update(_lengths(rng, lengths, B, S, P))
    capacity = P if lengths == "none" else P + spare
    rows = resolve_lengths(
        B,
        S,
        capacity,
        seqlens_k=inputs.get("seqlens_k"),
        total_sequence_length=inputs.get("total_sequence_length"),
        attention_mask=inputs.get("attention_mask"),
    )

    inputs["threshold"] = _threshold(rng, attributes, Hkv, D, per_channel=per_channel)
    if row_weight and attributes["granularity"] == "row":
        inputs["row_weight"] = (rng.integers(1, 5, (Hkv, D)) / 2).astype(np.float32)
    history = key_rows(rng, (B, Hkv, capacity + S, D), grid=grid)
    if attributes["cache_format"] == "float16":
        history = history.astype(np.float16).astype(np.float32)
    past = {
        "past_key": _code_past(history[:, :, :capacity], rows, attributes, inputs),
        "past_value": rng.normal(0, 1, (B, Hkv, capacity, D)),
    }
    new = {
        "query": rng.normal(0, 1, (B, S, Hq, D)),
        "key": np.stack([history[b, :, p : p + S] for b, p in enumerate(rows.past)]).transpose(0, 2, 1, 3),
        "value": rng.normal(0, 1, (B, S, Hkv, D)),
    }
    if poison:
        _poison(past, new, rows)
    merged = [x.reshape(B, S, -1).astype(query_type) for x in new.values()]
    if packed:
        inputs["query"] = np.concatenate(merged, axis=2)
    else:
        inputs["query"], inputs["key"], inputs["value"] = merged
    if capacity or rng.random() < 0.5:
        inputs.update({name: x.astype(attributes["cache_format"]) for name, x in past.items()})

    attributes = {**attributes, "do_rotary": int(attributes["do_rotary"] and D > 1)}
    if attributes["do_rotary"]:
        inputs.update(_rotary_inputs(rng, rows, S, D, query_type, position_ids=position_ids))
    if bias:
        shape = (rng.choice([1, B]), rng.choice([1, Hq]), S, rows.total)
        inputs["attention_bias"] = np.where(rng.random(shape) < 0.2, -np.inf, rng.normal(0, 1, shape)).astype(
            query_type
        )
    if head_sink:
        inputs["head_sink"] = rng.normal(0, 2, Hq).astype(query_type)
    return Case(inputs, attributes)


def _poison(past: dict[str, np.ndarray], new: dict[str, np.ndarray], rows: RowLengths) -> None:
    """NaN wherever no real token is: nothing of it may be read."""
    row = np.arange(past["past_key"].shape[2])
    unused = (row < rows.start[:, None]) | (row >= np.minimum(rows.past, rows.length)[:, None])
    for cache in past.values():
        cache[np.broadcast_to(unused[:, None], cache.shape[:3])] = np.nan
    for tensor in new.values():
        tensor[_padding(rows, tensor.shape[1])] = np.nan


def _padding(rows: RowLengths, S: int) -> np.ndarray:
    """New tokens that are not real, bool [B, S]."""
    row = rows.past[:, None] + np.arange(S)
    return (row < rows.start[:, None]) | (row >= rows.length[:, None])


def _rotary_inputs(
    rng: np.random.Generator, rows: RowLengths, S: int, D: int, query_type: str, *, position_ids: bool
) -> dict[str, np.ndarray]:
    angles = rng.uniform(0, 2 * np.pi, (MAX_POSITIONS, int(rng.integers(1, D // 2 + 1))))
    inputs = {"cos_cache": np.cos(angles).astype(query_type), "sin_cache": np.sin(angles).astype(query_type)}
    if position_ids:
        positions = rng.integers(0, MAX_POSITIONS, (rows.past.size, S))
        # What stands there for padding is nobody's business.
        inputs["position_ids"] = np.where(_padding(rows, S), MAX_POSITIONS + 3, positions)
    return inputs


def _lengths(rng: np.random.Generator, kind: str, B: int, S: int, P: int) -> dict[str, np.ndarray]:
    """Inputs that tell lengths, for at most P past tokens."""
    total = P + S
    if kind == "none":
        return {}
    if kind == "mask":
        first = rng.integers(0, max(1, total // 2) + 1, B)
        last = total - rng.integers(0, S + 1, B) * rng.integers(0, 2, B)
        column = np.arange(total)
        # A row whose padding meets in the middle is all padding.
        return {"attention_mask": ((column >= first[:, None]) & (column < last[:, None])).astype(np.int64)}
    past = rng.integers(0, P + 1, B)
    length = rng.integers(1, S + 1, B) if P == 0 else past + S
    scalar = np.array(total, np.int32)
    inputs = {
        "seqlens_k": (length - 1).astype(np.int32),
        "total_sequence_length": scalar.reshape(1) if rng.random() < 0.5 else scalar,
    }
    if kind == "seqlens+mask":
        first = np.minimum(rng.integers(0, 4, B), length)
        inputs["attention_mask"] = (np.arange(total) >= first[:, None]).astype(np.int64)
    return inputs


def _threshold(
    rng: np.random.Generator, attributes: dict[str, Any], Hkv: int, D: int, *, per_channel: bool
) -> np.ndarray:
    if attributes["granularity"] == "element":
        levels, shape = [0, 0.125, 0.25, 0.5, 1], (Hkv, D) if per_channel else (Hkv,)
    else:
        levels, shape = [0, 0.125, 0.25, 0.5] if attributes["row_rule"] == "relative" else [0, 0.25, 0.75, 2], (Hkv,)
    return rng.choice(levels, shape).astype(np.float32)


def _code_past(
    past_key: np.ndarray, rows: RowLengths, attributes: dict[str, Any], inputs: dict[str, np.ndarray]
) -> np.ndarray:
    """The past as earlier calls would have left it: coded behind the window."""
    coded = past_key.copy()
    for b in range(past_key.shape[0]):
        start, end = int(rows.start[b]), int(rows.past[b]) - attributes["delta_window"]
        if end > start:
            coded[b : b + 1, :, start:end] = hold(
                past_key[b : b + 1, :, start:end],
                inputs["threshold"],
                granularity=attributes["granularity"],
                row_rule=attributes["row_rule"],
                row_weight=inputs.get("row_weight"),
                sinks=attributes["sinks"],
                refresh=attributes["refresh"],
            )
    return coded
