"""Ways to write an attention mask as numbers added to the scores, or with a gathered padding mask, and near misses.

The long ones follow what optimum-onnx 0.1 (TorchScript) and torch.onnx (dynamo) write for transformers 4.57 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from support.attention_models import GraphBuilder, Mask, key_positions, query_positions, seen_by_position
from support.mask_spellings import Spelling, all_true, real_tokens
from support.mask_spellings_gathered import (
    counted,
    expanded,
    flat_padding,
    gather_nd_padding,
    gathered_columns,
    gathered_elements,
    listed,
)

BOOL, INT64, FLOAT, FLOAT16 = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT, TensorProto.FLOAT16
SMALLEST = float(np.finfo(np.float32).min)
WHOLE = 2**63 - 1


def mask_graph(build: Mask, fixed: dict[str, int] | None = None) -> onnx.ModelProto:
    """The mask alone, as the output of a model with the inputs of `attention_model` that matter.

    Args:
        build: makes the mask.
        fixed: dimensions that are numbers.
    """
    g = GraphBuilder(18)
    shapes = {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "total"],
        "past_key_values.0.key": ["batch", 2, "past", 5],
    }
    for name, shape in shapes.items():
        g.input(name, FLOAT if "past" in name else INT64, [(fixed or {}).get(n, n) for n in shape])
    mask = onnx.ValueInfoProto(name=build(g))
    g.outputs.append(mask)
    return onnx.shape_inference.infer_shapes(g.build(), strict_mode=True)


def number(g: GraphBuilder, value: float, dtype: Any = np.float32) -> str:
    return g.constant(value, dtype)


def bias_of(seen: Callable[[GraphBuilder], str], hidden: float = -np.inf, dtype: Any = np.float32) -> Mask:
    """Where(seen, 0, hidden)."""
    return lambda g: g.node("Where", seen(g), number(g, 0, dtype), number(g, hidden, dtype))


def causal_bias(g: GraphBuilder) -> str:
    return bias_of(seen_by_position, SMALLEST)(g)


def padding_numbers(g: GraphBuilder) -> str:
    """The padding mask as float32, [B, 1, 1, T]."""
    return g.node("Cast", g.node("Unsqueeze", "attention_mask", [1, 2]), to=FLOAT)


def padding_bias(hidden: float = SMALLEST) -> Mask:
    """(1 − padding)·hidden."""

    def build(g: GraphBuilder) -> str:
        padded = g.node("Sub", number(g, 1), padding_numbers(g))
        return g.node("Mul", padded, number(g, hidden))

    return build


def both(first: Mask, second: Mask, op: str = "Add") -> Mask:
    return lambda g: g.node(op, first(g), second(g))


def optimum_mask(g: GraphBuilder, padding: Callable[[GraphBuilder], str] = flat_padding) -> str:
    """The mask of optimum's sdpa exports: [B, 1, S, T], sliced to the keys' own length."""
    past, new, batch = g.length("past_key_values.0.key", 2), g.length("input_ids", 1), g.length("input_ids", 0)
    queries = g.node("Range", past, g.node("Add", past, new), 1)
    total = g.node("Add", past, g.node("Gather", g.node("Shape", queries), 0, axis=0))
    keys = counted(g, total, [0, 1, 2])
    seen = g.node("LessOrEqual", keys, g.node("Unsqueeze", queries, [0, 1, 3]))
    true = g.node("ConstantOfShape", g.constant([]), value=helper.make_tensor("true", BOOL, [1], [True]))
    seen = g.node("And", g.node("And", true, seen), padding(g))
    seen = expanded(g, seen, g.node("Reshape", listed(g, batch, -1, new, total), [-1]))
    present = g.node("Concat", "past_key_values.0.key", new_keys(g), axis=-2)
    end = g.node("Unsqueeze", g.node("Gather", g.node("Shape", present), 2, axis=0), [0])
    return g.node("Slice", seen, [0], end, [3], [1])


def new_keys(g: GraphBuilder) -> str:
    """Something [batch, 2, sequence, 5]."""
    shape = listed(g, g.length("input_ids", 0), 2, g.length("input_ids", 1), 5)
    return g.node("ConstantOfShape", shape, value=helper.make_tensor("zero", FLOAT, [1], [0.0]))


def written_mask(g: GraphBuilder, *, written: str = "", diagonal: int = 1, swapped: bool = False) -> str:
    """The mask of transformers' _prepare_4d_causal_attention_mask_with_cache_position: triangle, product, fill, write.

    Args:
        g: the graph.
        written: how many columns are written over; all of them where it is not given.
        diagonal: of the triangle.
        swapped: write to [b, 0, j, i].
    """
    new, total, batch = g.length("input_ids", 1), g.length("attention_mask", 1), g.length("input_ids", 0)
    past = g.length("past_key_values.0.key", 2)
    full = g.node("ConstantOfShape", listed(g, new, total), value=helper.make_tensor("min", FLOAT, [1], [SMALLEST]))
    triangle = g.node("Trilu", full, diagonal, upper=1)
    queries = g.node("Reshape", g.node("Range", past, g.node("Add", past, new), 1), [-1, 1])
    later = g.node("Cast", g.node("Greater", g.node("Range", 0, total, 1), queries), to=FLOAT)
    causal = g.node("Unsqueeze", g.node("Unsqueeze", g.node("Mul", triangle, later), [0]), [1])
    causal = expanded(g, causal, listed(g, batch, 1, -1, -1))
    columns = g.node("Unsqueeze", written or total, [0])
    part = g.node("Slice", causal, [0], columns, [3], [1])
    padded = g.node("Equal", g.node("Add", part, padding_numbers(g)), number(g, 0))
    filled = g.node("Where", padded, number(g, SMALLEST), part)
    lengths = [g.node("Gather", g.node("Shape", causal), axis, axis=0) for axis in range(4)]
    axes = [[-1, 1, 1, 1], [-1, 1, 1], [-1, 1], [-1]]
    places = [g.node("Reshape", g.node("Range", 0, n, 1), axis) for n, axis in zip(lengths, axes, strict=True)]
    places[3] = g.node("Slice", places[3], [0], columns, [0], [1])
    shape = g.node("Shape", g.node("Add", g.node("Add", g.node("Add", *places[:2]), places[2]), places[3]))
    tuples = [g.node("Unsqueeze", expanded(g, place, shape), [-1]) for place in places]
    if swapped:
        tuples[2], tuples[3] = tuples[3], tuples[2]
    return g.node(
        "ScatterND",
        causal,
        g.node("Concat", *tuples, axis=-1),
        g.node("Reshape", g.node("Expand", filled, g.node("Shape", part)), shape),
    )


def past_before_new(g: GraphBuilder, *, diagonal: int = 0) -> str:
    """Zeros for the past, then a triangle for the new tokens (MPT, and transformers before 4.36)."""
    past, new = g.length("past_key_values.0.key", 2), g.length("input_ids", 1)
    zeros = g.node("ConstantOfShape", listed(g, new, past))
    index = g.node("Range", 0, new, 1)
    rows = g.node("Reshape", g.node("Add", index, 1 + diagonal), [-1, 1])
    full = g.node("ConstantOfShape", listed(g, new, new), value=helper.make_tensor("min", FLOAT, [1], [SMALLEST]))
    later = g.node("Where", g.node("Less", index, rows), number(g, 0), full)
    return g.node("Concat", zeros, later, axis=-1)


def _inverted_fill(g: GraphBuilder) -> str:
    """transformers' old _expand_mask: inverted.masked_fill(inverted.bool(), min)."""
    inverted = g.node("Sub", number(g, 1), padding_numbers(g))
    return g.node("Where", g.node("Cast", inverted, to=BOOL), number(g, SMALLEST), inverted)


def _fill_chain(g: GraphBuilder) -> str:
    later = g.node("Greater", key_positions(g), query_positions(g))
    filled = g.node("Where", later, number(g, SMALLEST), number(g, 0))
    return g.node("Where", g.node("Not", real_tokens(g)), number(g, -np.inf), filled)


def _minus_one(g: GraphBuilder) -> str:
    return g.node("Mul", g.node("Sub", padding_numbers(g), number(g, 1)), number(g, -SMALLEST))


def _whole_numbers(g: GraphBuilder) -> str:
    seen = g.node("Where", seen_by_position(g), g.constant(1), g.constant(0))
    hidden = g.node("Cast", g.node("Sub", 1, seen), to=FLOAT)
    return g.node("Mul", hidden, number(g, SMALLEST))


def _half(g: GraphBuilder) -> str:
    padded = g.node("Sub", number(g, 1, np.float16), g.node("Cast", padding_numbers(g), to=FLOAT16))
    bias = g.node("Mul", padded, number(g, -65504, np.float16))
    return g.node("Add", bias, bias_of(seen_by_position, -65504, np.float16)(g))


def _cast_to_half(g: GraphBuilder) -> str:
    """The smallest float32 becomes −∞ in float16."""
    return g.node("Cast", causal_bias(g), to=FLOAT16)


def _back_to_truth(g: GraphBuilder) -> str:
    return g.node("Equal", both(causal_bias, padding_bias())(g), number(g, 0))


def _hidden_as_truth(g: GraphBuilder) -> str:
    return g.node("Not", g.node("Cast", both(causal_bias, padding_bias())(g), to=BOOL))


def _greater(g: GraphBuilder) -> str:
    return g.node("Greater", causal_bias(g), number(g, -1))


def _heads(g: GraphBuilder) -> str:
    return g.node("Tile", both(causal_bias, padding_bias())(g), [1, 6, 1, 1])


def _rows_of_square(g: GraphBuilder, *, first: int = 0) -> str:
    """Rows P … T−1 of a triangle [T, T]."""
    past, total = g.length("past_key_values.0.key", 2), g.length("attention_mask", 1)
    new = g.length("input_ids", 1)
    square = g.node("ConstantOfShape", listed(g, total, total), value=helper.make_tensor("true", BOOL, [1], [True]))
    triangle = g.node("Trilu", square, upper=0)
    start, end = g.node("Add", past, first), g.node("Add", past, new)
    return g.node("Slice", triangle, g.node("Unsqueeze", start, [0]), g.node("Unsqueeze", end, [0]), [0])


def _last_tokens(g: GraphBuilder) -> str:
    """attention_mask[:, −T:], T from the cache and the new tokens."""
    total = g.node("Add", g.length("past_key_values.0.key", 2), g.length("input_ids", 1))
    last = g.node("Slice", "attention_mask", g.node("Unsqueeze", g.node("Neg", total), [0]), [WHOLE], [1])
    return g.node("And", g.node("Unsqueeze", g.node("Cast", last, to=BOOL), [1, 2]), seen_by_position(g))


def _reshaped_by_batch(g: GraphBuilder) -> str:
    """GPT-2's attention_mask.view(batch, −1)."""
    shape = g.node("Concat", g.node("Shape", "past_key_values.0.key", start=0, end=1), g.constant([-1]), axis=0)
    rows = g.node("Cast", g.node("Reshape", "attention_mask", shape), to=BOOL)
    return g.node("And", g.node("Unsqueeze", rows, [1, 2]), seen_by_position(g))


def _and(padding: Callable[[GraphBuilder], str]) -> Mask:
    return lambda g: g.node("And", seen_by_position(g), padding(g))


def stored_table(g: GraphBuilder, window: int | None = None, *, ahead: int = 0, size: int = 40) -> str:
    """Rows P … T−1 and columns 0 … T−1 of a stored matrix, as GPT-Neo cuts its mask."""
    i, j = np.arange(size)[:, None], np.arange(size)[None, :]
    seen = (j <= i + ahead) & (j > i - (window or size))
    past = g.length("past_key_values.0.key", 2)
    start, end = (g.node("Unsqueeze", x, [0]) for x in (past, g.node("Add", past, g.length("input_ids", 1))))
    rows = g.node("Slice", g.constant(seen[None, None], np.bool_), start, end, [2])
    return g.node("Slice", rows, [0], end, [3])


def _spoilt_table(g: GraphBuilder) -> str:
    """A triangle with one hole."""
    seen = np.tril(np.ones((40, 40), np.bool_))
    seen[31, 5] = False
    past = g.length("past_key_values.0.key", 2)
    start, end = (g.node("Unsqueeze", x, [0]) for x in (past, g.node("Add", past, g.length("input_ids", 1))))
    return g.node("Slice", g.node("Slice", g.constant(seen, np.bool_), start, end, [0]), [0], end, [1])


ADDITIVE: dict[str, Spelling] = {
    "where -inf": Spelling(bias_of(seen_by_position)),
    "where smallest float32": Spelling(causal_bias),
    "where smallest float16": Spelling(bias_of(seen_by_position, -65504, np.float16)),
    "hidden first": Spelling(
        lambda g: g.node("Where", g.node("Not", seen_by_position(g, 4)), number(g, -np.inf), number(g, 0)), window=4
    ),
    "padding and window": Spelling(
        bias_of(lambda g: g.node("And", seen_by_position(g, 3), real_tokens(g)), SMALLEST), window=3, padding=True
    ),
    "one minus padding": Spelling(padding_bias(), causal=False, padding=True),
    "padding minus one": Spelling(both(_minus_one, causal_bias), padding=True),
    "sum of two": Spelling(both(causal_bias, padding_bias()), padding=True),
    "sum of windows": Spelling(
        both(bias_of(lambda g: seen_by_position(g, 6)), bias_of(real_tokens)), window=6, padding=True
    ),
    "smaller of two": Spelling(both(causal_bias, padding_bias(), "Min"), padding=True),
    "filled twice": Spelling(_fill_chain, padding=True),
    "inverted fill": Spelling(both(_inverted_fill, causal_bias), padding=True),
    "whole numbers": Spelling(_whole_numbers),
    "half precision": Spelling(_half, padding=True),
    "cast to half": Spelling(_cast_to_half),
    "compared with zero": Spelling(_back_to_truth, padding=True),
    "compared with minus one": Spelling(_greater),
    "cast to truth": Spelling(_hidden_as_truth, padding=True),
    "repeated for heads": Spelling(_heads, padding=True),
    "rows of a square": Spelling(_rows_of_square),
    "last tokens": Spelling(_last_tokens, padding=True),
    "reshaped by batch": Spelling(_reshaped_by_batch, padding=True),
    "flat gather": Spelling(_and(flat_padding), padding=True),
    "flat gather alone": Spelling(flat_padding, causal=False, padding=True),
    "gathered tuples": Spelling(_and(gather_nd_padding), padding=True),
    "gathered columns": Spelling(_and(gathered_columns), padding=True),
    "gathered elements": Spelling(_and(gathered_elements), padding=True),
    "optimum": Spelling(bias_of(optimum_mask), padding=True),
    "dynamo": Spelling(bias_of(lambda g: optimum_mask(g, gather_nd_padding), SMALLEST), padding=True),
    "written over": Spelling(written_mask, padding=True),
    "past before new": Spelling(past_before_new),
    "stored triangle": Spelling(bias_of(stored_table, SMALLEST)),
    "stored band": Spelling(lambda g: stored_table(g, 6), window=6),
    "past before new and padding": Spelling(both(past_before_new, padding_bias()), padding=True),
}


def _shorter(columns: int) -> Mask:
    """The first T − columns columns of a mask."""

    def build(g: GraphBuilder) -> str:
        end = g.node("Sub", g.length("attention_mask", 1), columns)
        return g.node("Slice", causal_bias(g), [0], g.node("Unsqueeze", end, [0]), [1])

    return build


def _behind_first(g: GraphBuilder) -> str:
    """Columns 1 … T of a mask of T + 1 columns, which starts to count too late."""
    total, new = g.length("attention_mask", 1), g.length("input_ids", 1)
    keys = counted(g, g.node("Add", total, 1), [0])
    seen = g.node("LessOrEqual", keys, query_positions(g))
    bias = g.node("Where", seen, number(g, 0), number(g, SMALLEST))
    assert new
    return g.node("Slice", bias, [1], [WHOLE], [1])


def _plus_positions(g: GraphBuilder) -> str:
    return g.node("Add", causal_bias(g), g.node("Cast", key_positions(g), to=FLOAT))


def _three_numbers(g: GraphBuilder) -> str:
    return g.node("Where", real_tokens(g), causal_bias(g), number(g, -5))


def _wrong_sign(g: GraphBuilder) -> str:
    return g.node("Add", causal_bias(g), padding_numbers(g))


def _longer(g: GraphBuilder) -> str:
    return g.node("Tile", g.node("Unsqueeze", causal_bias(g), [0, 1]), [1, 1, 1, 2])


def _triangle_of(offset: int) -> Mask:
    def build(g: GraphBuilder) -> str:
        past = g.node("Sub", g.length("attention_mask", 1), g.length("input_ids", 1))
        return bias_of(lambda b: b.node("Trilu", all_true(b), b.node("Add", past, offset), upper=0))(g)

    return build


def _one_row_for_all(g: GraphBuilder) -> str:
    """The padding of row 0."""
    keys = counted(g, g.length("attention_mask", 1), [0, 1, 2])
    index = g.node("Add", keys, g.node("Mul", counted(g, g.constant(1), [1, 2, 3]), g.length("attention_mask", 1)))
    padding = g.node("Reshape", g.node("Cast", "attention_mask", to=BOOL), [-1])
    return g.node("And", seen_by_position(g), g.node("Gather", padding, index, axis=0))


def _same_row_for_all(g: GraphBuilder) -> str:
    padding = g.node("Gather", "attention_mask", [0], axis=0)
    return g.node("And", seen_by_position(g), g.node("Unsqueeze", g.node("Cast", padding, to=BOOL), [1, 2]))


#: Masks that look like those above and are not; with words that the refusal must hold.
NEAR_MISSES: dict[str, tuple[Mask, str]] = {
    "-10000": (bias_of(seen_by_position, -10000), "only made less likely"),
    "-10000 for padding": (padding_bias(-10000), "adds 0 and -10000"),
    "slightly above float16": (bias_of(seen_by_position, -65503), "only made less likely"),
    "zero times infinity": (both(causal_bias, padding_bias(-np.inf)), "(Mul) computes 0 · ∞"),
    "seen is one": (
        lambda g: g.node("Where", seen_by_position(g), number(g, 1), number(g, -np.inf)),
        "adds 1 and -inf",
    ),
    "inverted": (lambda g: g.node("Where", seen_by_position(g), number(g, SMALLEST), number(g, 0)), "not see itself"),
    "hides everything": (lambda g: number(g, SMALLEST), "hides every key"),
    "three numbers": (_three_numbers, "three different numbers"),
    "wrong sign": (_wrong_sign, "a sum of numbers by two conditions"),
    "larger of two": (both(causal_bias, padding_bias(), "Max"), "(Max)"),
    "product of masks": (both(causal_bias, padding_bias(), "Mul"), "two different conditions"),
    "smallest float16 in float32": (bias_of(seen_by_position, -65504), "where 0 and −∞ (or -1e+30 and below)"),
    "plus positions": (_plus_positions, "(Cast)"),
    "halved away": (lambda g: g.node("Mul", causal_bias(g), number(g, 1e-36)), "only made less likely"),
    "triangle one too wide": (_triangle_of(1), "off by 1"),
    "triangle one too narrow": (_triangle_of(-1), "off by 1"),
    "written triangle one too high": (lambda g: written_mask(g, diagonal=2), "(Equal) combines conditions"),
    "written to new columns only": (
        lambda g: written_mask(g, written=g.length("input_ids", 1)),
        "(ScatterND) writes over a part",
    ),
    "written to swapped axes": (lambda g: written_mask(g, swapped=True), "(ScatterND) writes over a part"),
    "slice one column short": (_shorter(1), "(Slice) takes a part that ends at total - 1"),
    "slice starts late": (_behind_first, "off by 1"),
    "rows of a square one late": (lambda g: _rows_of_square(g, first=1), "positions along axis -2"),
    "past before new, one ahead": (lambda g: past_before_new(g, diagonal=1), "off by 1"),
    "past before new, one behind": (lambda g: past_before_new(g, diagonal=-1), "j ≤ i -1"),
    "repeated keys": (_longer, "(Tile)"),
    "stored triangle, one ahead": (lambda g: stored_table(g, ahead=1), "off by 1"),
    "stored triangle with a hole": (_spoilt_table, "different numbers in different places"),
    "flat width of the new tokens": (
        _and(lambda g: flat_padding(g, width=g.length("input_ids", 1))),
        "columns of 'attention_mask'",
    ),
    "flat width off by one": (
        _and(lambda g: flat_padding(g, width=g.node("Add", g.length("attention_mask", 1), 1))),
        "columns of 'attention_mask'",
    ),
    "flat index swapped": (_and(lambda g: flat_padding(g, swapped=True)), "in another order than row by row"),
    "flat index one late": (_and(lambda g: flat_padding(g, offset=1)), "do not count 0, 1, 2"),
    "tuples swapped": (_and(lambda g: gather_nd_padding(g, swapped=True)), "on axes -1 and -4"),
    "tuples one late": (_and(lambda g: gather_nd_padding(g, offset=1)), "do not count 0, 1, 2"),
    "elements of the first row": (_and(lambda g: gathered_elements(g, rows=1)), "1 rows of 'attention_mask'"),
    "first row for all": (_one_row_for_all, "1 rows of 'attention_mask'"),
    "first row gathered": (_same_row_for_all, "(Gather)"),
}


def alibi(g: GraphBuilder) -> str:
    """A slope per head times the position of the key, [6, 1, T]."""
    slopes = g.constant(2.0 ** -np.arange(1, 7)[:, None, None], np.float32)
    return g.node("Mul", slopes, g.node("Cast", g.node("Unsqueeze", key_positions(g), [0]), to=FLOAT))
