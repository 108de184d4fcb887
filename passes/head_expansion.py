"""Prove that grouped keys and values were repeated for their query heads the way DeltaAttention shares them."""

from __future__ import annotations

from deltallm_onnx.passes.axes import REPEAT, Axes, Axis
from deltallm_onnx.passes.site import NotUnderstood

HEAD = "head"


def query_heads(axes: Axes, axis: Axis, what: str) -> int:
    """How many heads an axis of keys or values runs through, each KV head standing for a group of query heads.

    Query head h must meet KV head h div G, as in docs/spec.md: [head, repeat], the order that Unsqueeze(2), Expand and
    Reshape leave. The order [repeat, head] would meet h mod Hkv.

    Args:
        axes: of the keys or values.
        axis: the one with the heads.
        what: "key" or "value".

    Returns:
        Hkv·G; with one KV head that is left to broadcasting, 1.

    Raises:
        NotUnderstood: for any other order.
    """
    repeats = [name for name in axis if name.startswith(REPEAT)]
    heads = [name for name in axis if name == HEAD]
    if len(repeats) + len(heads) != len(axis):
        raise NotUnderstood(f"the heads of its {what} share an axis with {' and '.join(axis)}")
    if heads and repeats and axis[0] != HEAD:
        raise NotUnderstood(
            f"its {what} repeats all heads one after the other, so that query head h meets head h mod Hkv instead of "
            "h div (Hq / Hkv)"
        )
    if not heads and axes.lengths[HEAD].const != 1:
        raise NotUnderstood(f"the heads of its {what} lie on another axis")
    count = axes.length(axis)
    if count is None or not count.is_constant():
        raise NotUnderstood(f"the number of heads of its {what} is {count}, not a fixed number")
    return count.const
