"""Ways to write an attention mask in ONNX, with what they mean, and near misses that mean something else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder, Mask, key_positions, query_positions, run_model, seen_by_position

BOOL, INT64, INT32, FLOAT = TensorProto.BOOL, TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One way to write a mask, and its meaning."""

    build: Mask
    causal: bool = True
    window: int | None = None
    padding: bool = False


def mask_values(build: Mask, *, batch: int, new: int, past: int, padding: NDArray[Any]) -> NDArray[Any]:
    """What a mask graph computes, broadcast to [batch, 1, new, past + new], by ONNX Runtime."""
    g = GraphBuilder()
    g.input("input_ids", INT64, ["batch", "sequence"])
    g.input("attention_mask", INT64, ["batch", "total"])
    g.input("past_key_values.0.key", FLOAT, ["batch", 2, "past", 5])
    g.output(g.node("Identity", build(g), output="mask"), BOOL, None)  # type: ignore[arg-type]
    feeds = {
        "input_ids": np.zeros((batch, new), np.int64),
        "attention_mask": padding.astype(np.int64),
        "past_key_values.0.key": np.zeros((batch, 2, past, 5), np.float32),
    }
    model: onnx.ModelProto = g.build()
    return np.broadcast_to(run_model(model, feeds)["mask"], (batch, 1, new, past + new))


def meant(spelling: Spelling, *, new: int, past: int, padding: NDArray[Any]) -> NDArray[Any]:
    """The same from docs/spec.md's definitions, [batch, 1, new, past + new]."""
    i = past + np.arange(new)[:, None]
    j = np.arange(past + new)[None, :]
    seen = np.ones((new, past + new), bool)
    if spelling.causal:
        seen &= j <= i
    if spelling.window is not None:
        seen &= j > i - spelling.window
    real = (
        padding[:, None, None, :].astype(bool) if spelling.padding else np.ones((len(padding), 1, 1, past + new), bool)
    )
    return seen[None, None] & real


def real_tokens(g: GraphBuilder) -> str:
    """The padding mask as truth values, [B, 1, 1, T]."""
    return g.node("Unsqueeze", g.node("Cast", "attention_mask", to=BOOL), [1, 2])


def ids(g: GraphBuilder) -> tuple[str, str]:
    """Column of each key [1,T] and of each query [S,1]."""
    return key_positions(g), query_positions(g)


def true(g: GraphBuilder) -> str:
    return g.constant(True, np.bool_)


def false(g: GraphBuilder) -> str:
    return g.constant(False, np.bool_)


def all_true(g: GraphBuilder) -> str:
    """ConstantOfShape(True) [S, T], as torch.ones(..., dtype=bool) is exported."""
    shape = g.node("Concat", g.node("Shape", "input_ids", start=1), g.node("Shape", "attention_mask", start=1), axis=0)
    return g.node("ConstantOfShape", shape, value=helper.make_tensor("fill", BOOL, [1], [True]))


def _not_greater(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("Not", g.node("Greater", keys, queries))


def _greater_or_equal(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("GreaterOrEqual", queries, keys)


def _difference(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("Less", g.node("Sub", keys, queries), 1)


def _strict(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("Less", keys, g.node("Add", queries, 1))


def _negative_difference(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("GreaterOrEqual", g.node("Neg", g.node("Sub", keys, queries)), 0)


def _scaled(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("LessOrEqual", g.node("Add", keys, g.node("Mul", queries, -1)), 0)


def _int32(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("LessOrEqual", g.node("Cast", keys, to=INT32), g.node("Cast", queries, to=INT32))


def _range_from_past(g: GraphBuilder) -> str:
    past, new = g.length("past_key_values.0.key", 2), g.length("input_ids", 1)
    total = g.node("Add", past, new)
    queries = g.node("Unsqueeze", g.node("Range", past, total, 1), [1])
    return g.node("LessOrEqual", g.node("Unsqueeze", g.node("Range", 0, total, 1), [0]), queries)


def _gathered_shape(g: GraphBuilder) -> str:
    new = g.node("Gather", g.node("Shape", "input_ids"), 1, axis=0)
    total = g.node("Gather", g.node("Shape", "attention_mask"), [1], axis=0)
    total = g.node("Squeeze", total, [0])
    queries = g.node("Add", g.node("Range", 0, new, 1), g.node("Sub", total, new))
    return g.node(
        "LessOrEqual",
        g.node("Reshape", g.node("Range", 0, total, 1), [1, -1]),
        g.node("Reshape", queries, [-1, 1]),
    )


def _sliced_shape(g: GraphBuilder) -> str:
    total = g.node("Squeeze", g.node("Slice", g.node("Shape", "attention_mask"), [-1], [2**63 - 1], [0]))
    keys = g.node("Unsqueeze", g.node("Range", 0, total, 1), [0])
    return g.node("LessOrEqual", keys, query_positions(g))


def _transposed(g: GraphBuilder) -> str:
    keys, queries = key_positions(g, axis=1), query_positions(g, axis=0)
    return g.node("Transpose", g.node("LessOrEqual", keys, queries), perm=[1, 0])


def _expanded(g: GraphBuilder) -> str:
    shape = g.node(
        "Concat",
        g.node("Shape", "input_ids", start=0, end=1),
        g.constant([1]),
        g.node("Shape", "input_ids", start=1),
        g.node("Shape", "attention_mask", start=1),
        axis=0,
    )
    return g.node("And", g.node("Expand", g.node("Unsqueeze", seen_by_position(g), [0, 1]), shape), real_tokens(g))


def _squeezed(g: GraphBuilder) -> str:
    return g.node("Squeeze", g.node("Unsqueeze", seen_by_position(g), [0]), [0])


def _trilu(g: GraphBuilder) -> str:
    past = g.node("Sub", g.length("attention_mask", 1), g.length("input_ids", 1))
    return g.node("Trilu", all_true(g), past, upper=0)


def _not_upper_trilu(g: GraphBuilder) -> str:
    past = g.node("Sub", g.length("attention_mask", 1), g.length("input_ids", 1))
    return g.node("Not", g.node("Trilu", all_true(g), g.node("Add", past, 1), upper=1))


def _de_morgan(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    hidden = g.node("Or", g.node("Greater", keys, queries), g.node("Not", real_tokens(g)))
    return g.node("Not", hidden)


def _or_false(g: GraphBuilder) -> str:
    return g.node("Or", g.node("And", seen_by_position(g), true(g)), false(g))


def _padding_by(test: Callable[[GraphBuilder], str]) -> Mask:
    def build(g: GraphBuilder) -> str:
        return g.node("And", g.node("Unsqueeze", test(g), [1, 2]), seen_by_position(g))

    return build


def _padding_reshaped(g: GraphBuilder) -> str:
    shape = g.node("Concat", g.constant([-1, 1, 1]), g.node("Shape", "attention_mask", start=1), axis=0)
    return g.node("And", g.node("Reshape", g.node("Cast", "attention_mask", to=BOOL), shape), seen_by_position(g))


def _padding_unsqueezed_twice(g: GraphBuilder) -> str:
    padding = g.node("Unsqueeze", g.node("Unsqueeze", "attention_mask", [1]), [-2])
    return g.node("And", g.node("Cast", padding, to=BOOL), seen_by_position(g))


def _window_by_difference(window: int) -> Mask:
    def build(g: GraphBuilder) -> str:
        keys, queries = ids(g)
        inside = g.node("Less", g.node("Sub", queries, keys), window)
        return g.node("And", inside, g.node("LessOrEqual", keys, queries))

    return build


def _window_inclusive(window: int) -> Mask:
    def build(g: GraphBuilder) -> str:
        keys, queries = ids(g)
        inside = g.node("GreaterOrEqual", keys, g.node("Sub", queries, window - 1))
        return g.node("And", g.node("And", inside, seen_by_position(g)), real_tokens(g))

    return build


def _two_windows(g: GraphBuilder) -> str:
    return g.node("And", seen_by_position(g, 9), seen_by_position(g, 4))


def _trivial(g: GraphBuilder) -> str:
    """Conditions that always hold: keys are not negative, and no key lies behind the last one."""
    keys, _ = ids(g)
    inside = g.node("And", g.node("GreaterOrEqual", keys, 0), g.node("Less", keys, g.length("attention_mask", 1)))
    return g.node("And", inside, seen_by_position(g))


SPELLINGS: dict[str, Spelling] = {
    "exporter": Spelling(seen_by_position),
    "exporter window": Spelling(lambda g: seen_by_position(g, 3), window=3),
    "exporter padding": Spelling(lambda g: g.node("And", seen_by_position(g), real_tokens(g)), padding=True),
    "exporter window and padding": Spelling(
        lambda g: g.node("And", seen_by_position(g, 5), real_tokens(g)), window=5, padding=True
    ),
    "padding alone": Spelling(real_tokens, causal=False, padding=True),
    "window alone": Spelling(
        lambda g: g.node("Greater", key_positions(g), g.node("Sub", query_positions(g), 4)), causal=False, window=4
    ),
    "window of one": Spelling(_window_by_difference(1), window=1),
    "not greater": Spelling(_not_greater),
    "greater or equal": Spelling(_greater_or_equal),
    "difference": Spelling(_difference),
    "strict": Spelling(_strict),
    "negative difference": Spelling(_negative_difference),
    "scaled": Spelling(_scaled),
    "int32": Spelling(_int32),
    "range from past": Spelling(_range_from_past),
    "gathered shape": Spelling(_gathered_shape),
    "sliced shape": Spelling(_sliced_shape),
    "transposed": Spelling(_transposed),
    "expanded": Spelling(_expanded, padding=True),
    "squeezed": Spelling(_squeezed),
    "trilu": Spelling(_trilu),
    "not upper trilu": Spelling(_not_upper_trilu),
    "de morgan": Spelling(_de_morgan, padding=True),
    "or false": Spelling(_or_false),
    "window by difference": Spelling(_window_by_difference(6), window=6),
    "window inclusive": Spelling(_window_inclusive(4), window=4, padding=True),
    "two windows": Spelling(_two_windows, window=4),
    "always true conditions": Spelling(_trivial),
    "padding not equal": Spelling(
        _padding_by(lambda g: g.node("Not", g.node("Equal", "attention_mask", 0))), padding=True
    ),
    "padding equal one": Spelling(_padding_by(lambda g: g.node("Equal", "attention_mask", 1)), padding=True),
    "padding greater": Spelling(_padding_by(lambda g: g.node("Greater", "attention_mask", 0)), padding=True),
    "padding at least one": Spelling(
        _padding_by(lambda g: g.node("GreaterOrEqual", "attention_mask", 1)), padding=True
    ),
    "padding not less": Spelling(
        _padding_by(lambda g: g.node("Not", g.node("Less", "attention_mask", 1))), padding=True
    ),
    "padding reshaped": Spelling(_padding_reshaped, padding=True),
    "padding unsqueezed twice": Spelling(_padding_unsqueezed_twice, padding=True),
}


def _off_by(offset: int) -> Mask:
    def build(g: GraphBuilder) -> str:
        keys, queries = ids(g)
        return g.node("LessOrEqual", keys, g.node("Add", queries, offset))

    return build


def _past_not_added(g: GraphBuilder) -> str:
    queries = g.node("Unsqueeze", g.node("Range", 0, g.length("input_ids", 1), 1), [1])
    return g.node("LessOrEqual", key_positions(g), queries)


def _past_added_to_keys(g: GraphBuilder) -> str:
    """Keys of the new tokens only: [S, S], short of the past."""
    new = g.length("input_ids", 1)
    keys, queries = g.node("Range", 0, new, 1), g.node("Range", 0, new, 1)
    return g.node("LessOrEqual", g.node("Unsqueeze", keys, [0]), g.node("Unsqueeze", queries, [1]))


def _wrong_axes(g: GraphBuilder) -> str:
    """Keys along the rows and queries along the columns: transposed once too often."""
    keys, queries = key_positions(g, axis=1), query_positions(g, axis=0)
    return g.node("LessOrEqual", keys, queries)


def _anti_causal(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("LessOrEqual", queries, keys)


def _window_and_future(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    near = g.node("Less", g.node("Sub", keys, queries), 3)
    return g.node("And", near, g.node("Greater", keys, g.node("Sub", queries, 3)))


def _every_other(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("LessOrEqual", g.node("Mul", keys, 2), queries)


def _empty_window(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    return g.node("And", seen_by_position(g), g.node("Greater", keys, g.node("Sub", queries, 0)))


def _disjunction(g: GraphBuilder) -> str:
    """Causal or within the first three keys: a prefix language model."""
    return g.node("Or", seen_by_position(g), g.node("Less", key_positions(g), 3))


def _prefix(g: GraphBuilder) -> str:
    """Nothing after key 5."""
    return g.node("And", seen_by_position(g), g.node("LessOrEqual", key_positions(g), 5))


def _first_queries(g: GraphBuilder) -> str:
    """Nothing for the new tokens behind the third."""
    index = g.node("Unsqueeze", g.node("Range", 0, g.length("input_ids", 1), 1), [1])
    return g.node("And", seen_by_position(g), g.node("LessOrEqual", index, 2))


def _padding_inverted(g: GraphBuilder) -> str:
    return g.node("And", seen_by_position(g), g.node("Not", real_tokens(g)))


def _padding_on_queries(g: GraphBuilder) -> str:
    padding = g.node("Unsqueeze", g.node("Cast", "attention_mask", to=BOOL), [1, 3])
    return g.node("And", padding, seen_by_position(g))


def _padding_of_no_batch(g: GraphBuilder) -> str:
    padding = g.node("Cast", "attention_mask", to=BOOL)
    return g.node("And", g.node("Unsqueeze", padding, [0]), seen_by_position(g))


def _padding_greater_one(g: GraphBuilder) -> str:
    return _padding_by(lambda b: b.node("Greater", "attention_mask", 1))(g)


def _padding_counted(g: GraphBuilder) -> str:
    """Positions from a running sum of the padding mask."""
    count = g.node("CumSum", "attention_mask", 1)
    return g.node("And", g.node("Cast", g.node("Unsqueeze", count, [1, 2]), to=BOOL), seen_by_position(g))


def _table(g: GraphBuilder) -> str:
    table = g.constant(np.tril(np.ones((64, 64))), np.bool_)
    new, total = g.node("Shape", "input_ids", start=1), g.node("Shape", "attention_mask", start=1)
    past = g.node("Sub", total, new)
    rows = g.node("Slice", table, past, total, [0])
    return g.node("Slice", rows, [0], total, [1])


def _all_false(g: GraphBuilder) -> str:
    return g.node("And", seen_by_position(g), false(g))


def _parity(g: GraphBuilder) -> str:
    keys, queries = ids(g)
    even = g.node("Equal", g.node("Mod", g.node("Sub", queries, keys), 2), 0)
    return g.node("And", seen_by_position(g), even)


def _stepped_range(g: GraphBuilder) -> str:
    total = g.length("attention_mask", 1)
    keys = g.node("Unsqueeze", g.node("Range", 0, g.node("Mul", total, 2), 2), [0])
    return g.node("LessOrEqual", keys, query_positions(g))


#: Masks that look like those above and are not; with words that the refusal must hold.
NEAR_MISSES: dict[str, tuple[Mask, str]] = {
    "sees one key ahead": (_off_by(1), "j ≤ i +1"),
    "does not see itself": (_off_by(-1), "j ≤ i -1"),
    "past not added": (_past_not_added, "neither causality"),
    "keys of the new tokens only": (_past_added_to_keys, "positions along axis -1"),
    "wrong axes": (_wrong_axes, "positions along axis"),
    "anti-causal": (_anti_causal, "not causal"),
    "window reaches into the future": (_window_and_future, "off by 2"),
    "every other key": (_every_other, "neither causality"),
    "empty window": (_empty_window, "does not see itself"),
    "disjunction": (_disjunction, "disjunction"),
    "prefix only": (_prefix, "neither causality"),
    "first queries only": (_first_queries, "neither causality"),
    "padding inverted": (_padding_inverted, "hides the real tokens"),
    "padding on queries": (_padding_on_queries, "axes -4 and -2"),
    "padding without batch": (_padding_of_no_batch, "axes -2 and -1"),
    "padding greater one": (_padding_greater_one, "(Greater)"),
    "padding counted": (_padding_counted, "(CumSum)"),
    "table": (_table, "(Slice) takes a part that starts at"),
    "all false": (_all_false, "false everywhere"),
    "parity": (_parity, "(Mod)"),
    "stepped range": (_stepped_range, "(Range)"),
}
