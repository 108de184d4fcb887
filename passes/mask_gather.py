"""The padding mask picked entry by entry: padding[b, j] by positions b and j, flat or as tuples, is the padding mask.

Exporters write `padding_mask[batch_index, key_index]` with indices that broadcast to [B, 1, 1, T] as

    Reshape(padding, [−1]) ▶ Gather(b·T + j)            TorchScript; T is the padding mask's own second axis
    GatherND(padding, [b, j])                           torch.export
    Gather(padding, j, axis 1), GatherElements          one index

Both positions have to count from 0 in steps of 1, each along an axis of its own. That their lengths are B and T is
noted on the result (`RealToken.rows` and `keys`) and proven by `masks`.
"""

from __future__ import annotations

from deltallm_onnx.passes.affine import ONE, Affine, dimension
from deltallm_onnx.passes.mask_domain import (
    Abstract,
    Condition,
    FlatIndex,
    FlatPadding,
    IndexTuples,
    PaddingTokens,
    Positions,
    RealToken,
    Tensor,
    as_positions,
    kind,
)

ZERO = Affine(0)


def padding_token(value: Abstract) -> RealToken | None:
    """The padding mask, numbers or truth values, on its own two axes; None for anything else."""
    token = _only_token(value)
    if token is None or (token.batch_axis, token.key_axis) != (-2, -1):
        return None
    return token if isinstance(value, PaddingTokens | Condition) and value.rank == 2 else None


def _only_token(value: Abstract) -> RealToken | None:
    if isinstance(value, PaddingTokens):
        return value.token
    if isinstance(value, Condition) and not value.negated and len(value.terms) == 1:
        (term,) = value.terms
        return term if isinstance(term, RealToken) else None
    return None


def _as_padding(value: Abstract, token: RealToken, rank: int) -> Tensor:
    """The padding mask elsewhere, as numbers or truth values as before."""
    is_boolean = value.is_boolean if isinstance(value, FlatPadding) else isinstance(value, Condition)
    return Condition(rank, frozenset({token})) if is_boolean else PaddingTokens(rank, token)


def flattened(value: Tensor, lengths: tuple[Affine, ...], rank: int) -> FlatPadding:
    """The padding mask laid flat, [B·T] or [B·T, 1].

    Args:
        value: the padding mask on any two axes, the batch first.
        lengths: of the axes of `value`; all but those two have to be 1.
        rank: of the result.

    Raises:
        ValueError: for anything else.
    """
    token = _only_token(value)
    if token is None:
        raise ValueError(f"lays {kind(value)} flat")
    others = {axis - len(lengths) for axis, length in enumerate(lengths) if length != ONE}
    if token.batch_axis > token.key_axis or not others <= {token.batch_axis, token.key_axis}:
        raise ValueError("lays the padding mask flat in another order than row by row")
    return FlatPadding(rank, token.moved(-2, -1), isinstance(value, Condition))


def unflattened(value: FlatPadding, target: tuple[Affine, ...]) -> Abstract:
    """The padding mask laid flat, in rows again."""
    if target == (Affine(-1),):
        return FlatPadding(1, value.token, value.is_boolean)
    return _in_rows(value, value.token, target)


def reshaped(value: Tensor, target: tuple[Affine, ...]) -> Tensor:
    """The padding mask [B, T] with axes of length 1 inserted."""
    token = padding_token(value)
    if token is None:
        raise ValueError(f"reshapes {kind(value)}")
    lengths = (dimension(token.source, 0), dimension(token.source, 1))
    copied = tuple(lengths[i] if item == ZERO and i < 2 else item for i, item in enumerate(target))
    return _in_rows(value, token, copied)


def _in_rows(value: Abstract, token: RealToken, target: tuple[Affine, ...]) -> Tensor:
    """B·T entries as rows and columns: what is asked for has to be B and T."""
    places = [place for place, item in enumerate(target) if item != ONE]
    if len(places) == 1 and places != [0]:
        places.insert(0, 0)  # a batch of 1, which lies on the first axis
    if len(places) != 2 or any(target[place] == ZERO for place in places):
        raise ValueError(f"reshapes the padding mask to [{', '.join(map(str, target))}]")
    rows, keys = (None if target[place] == Affine(-1) else target[place] for place in places)
    if rows is None and keys is None:
        raise ValueError("infers two lengths")
    rank = len(target)
    return _as_padding(value, token.moved(places[0] - rank, places[1] - rank).given(rows=rows, keys=keys), rank)


def flat_index(row: Positions, width: Positions) -> FlatIndex:
    """row·width, for a width that does not change along any axis."""
    rank = max(row.rank, width.rank)
    return FlatIndex(rank, row, width.base, Positions(rank, ZERO))


def add_column(index: FlatIndex, column: Abstract) -> FlatIndex:
    """row·width + column."""
    if index.column != Positions(index.column.rank, ZERO):
        raise ValueError("adds to places in a matrix twice")
    positions = as_positions(column)
    return FlatIndex(max(index.rank, positions.rank), index.row, index.width, positions)


def gather(data: Abstract, index: Abstract, axis: int) -> Abstract:
    """Gather from the padding mask.

    Raises:
        ValueError: where the result is not the padding mask again.
    """
    if isinstance(data, FlatPadding) and isinstance(index, Positions):
        index = FlatIndex(index.rank, Positions(index.rank, ZERO), dimension(data.token.source, 1), index)  # row 0
    if isinstance(data, FlatPadding) and isinstance(index, FlatIndex) and axis in (0, -data.rank):
        trailing = data.rank - 1
        token = _picked(data.token.given(keys=index.width), index.row, index.column)
        moved = token.moved(token.batch_axis - trailing, token.key_axis - trailing)
        return _as_padding(data, moved, index.rank + trailing)
    token_of_rows = padding_token(data)
    if token_of_rows is not None and isinstance(index, Positions) and axis in (1, -1):
        keys, length = _counted(index)
        return _as_padding(data, token_of_rows.moved(-1 - index.rank, keys).given(keys=length), index.rank + 1)
    raise ValueError(f"gathers {kind(data)} by {kind(index)}")


def gather_nd(data: Abstract, index: Abstract) -> Abstract:
    """GatherND from the padding mask by tuples (row, column).

    Raises:
        ValueError: where the result is not the padding mask again.
    """
    token = padding_token(data)
    if token is None or not isinstance(index, IndexTuples) or len(index.items) != 2:
        raise ValueError(f"gathers {kind(data)} by {kind(index)}")
    row, column = index.items
    return _as_padding(data, _picked(token, row, column), index.rank - 1)


def gather_elements(data: Abstract, index: Abstract, rows: Affine) -> Abstract:
    """GatherElements along the columns of the padding mask, by as many rows of positions.

    Raises:
        ValueError: where the result is not the padding mask again.
    """
    token = padding_token(data)
    if token is None or not isinstance(index, Positions) or index.rank != 2:
        raise ValueError(f"gathers {kind(data)} by {kind(index)}")
    axis, keys = _counted(index)
    if axis != -1:
        raise ValueError("gathers another column of the padding mask in each row")
    return _as_padding(data, token.given(rows=rows, keys=keys), 2)


def index_tuples(items: list[Abstract]) -> IndexTuples:
    """Positions [..., 1] side by side. Raises ValueError where one of them is something else."""
    columns = [as_positions(item) for item in items]
    if any(column.rank != columns[0].rank or any(axis == -1 for axis, _, _ in column.steps) for column in columns):
        raise ValueError("joins positions along an axis that they change along")
    rank = columns[0].rank
    moved = (Positions(rank - 1, c.base, tuple((axis + 1, step, n) for axis, step, n in c.steps)) for c in columns)
    return IndexTuples(rank, tuple(moved))


def require_identity(index: Abstract, lengths: tuple[Affine, ...]) -> None:
    """Refuse indices other than [i, j, …] at place [i, j, …], for all of a tensor's axes."""
    if not isinstance(index, IndexTuples) or len(index.items) != len(lengths) or index.rank != len(lengths) + 1:
        raise ValueError(f"writes by {kind(index)}")
    for axis, (positions, length) in enumerate(zip(index.items, lengths, strict=True)):
        counted = ((axis - len(lengths), 1, length),)
        if positions.base != ZERO or positions.steps != (() if length == ONE else counted):
            raise ValueError("writes over a part of a tensor")


def _picked(token: RealToken, row: Positions, column: Positions) -> RealToken:
    """padding[row, column], which is the padding mask if their lengths are B and T."""
    key_axis, keys = _counted(column)
    # Row 0 for all is the padding mask of a batch of 1, which lies on the first axis.
    batch_axis, rows = (-row.rank, ONE) if row == Positions(row.rank, ZERO) else _counted(row)
    if batch_axis == key_axis:
        raise ValueError("gathers the diagonal of the padding mask")
    return token.moved(batch_axis, key_axis).given(rows=rows, keys=keys)


def _counted(positions: Positions) -> tuple[int, Affine]:
    """Axis and length of positions 0, 1, 2, … along one axis."""
    if len(positions.steps) != 1 or positions.base != ZERO or positions.steps[0][1] != 1:
        raise ValueError("gathers the padding mask by positions that do not count 0, 1, 2, … along one axis")
    axis, _, length = positions.steps[0]
    return axis, length
