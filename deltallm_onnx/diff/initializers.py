"""Which initializer of one graph is which of the other, and what differs between the two."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from deltallm_onnx.diff.leaves import same_initializer
from deltallm_onnx.diff.report import Change, Detail
from deltallm_onnx.diff.tensors import TensorView
from deltallm_onnx.diff.view import INITIALIZER, GraphView, Operand

Named = tuple[str, TensorView]


def pair_initializers(a: GraphView, b: GraphView, facing: Iterable[tuple[Operand, Operand]]) -> dict[int, int]:
    """Index pairs, surest first.

    Exporters number small constants, so that equal names may be unrelated and equal constants named differently: equal
    content goes before equal names, and for small constants the place in matched nodes does too.

    Args:
        a: one graph.
        b: the other.
        facing: operands at the same place of matched nodes.
    """
    slots = [(x.entry, y.entry) for x, y in facing if x.source == y.source == INITIALIZER]
    pairs: dict[int, int] = {}
    taken: set[int] = set()

    def pair(candidates: Iterable[tuple[int, int]], fits: Callable[[Named, Named], bool]) -> None:
        for i, j in candidates:
            if i not in pairs and j not in taken and fits(a.initializers[i], b.initializers[j]):
                pairs[i] = j
                taken.add(j)

    where = {name: j for j, (name, _) in enumerate(b.initializers)}
    by_name = [(i, where[name]) for i, (name, _) in enumerate(a.initializers) if name in where]
    pair(by_name, lambda x, y: same_initializer(x[1], y[1]))
    pair(slots, lambda x, y: _same_content(x[1], y[1]))
    pair(_equal_contents(a.initializers, b.initializers, pairs, taken), lambda x, y: _same_content(x[1], y[1]))
    pair(by_name, lambda x, y: x[1][:2] == y[1][:2] and not x[1].literal)
    pair(slots, lambda _x, _y: True)
    pair(by_name, lambda _x, _y: True)
    return pairs


def initializer_changes(
    views: tuple[GraphView, GraphView], pairs: dict[int, int], scope: tuple[str, ...], *, storage_counts: bool
) -> list[Change]:
    """Removed, added and changed initializers; another name alone is no change.

    Args:
        views: the two graphs.
        pairs: what `pair_initializers` found.
        scope: where the graphs are.
        storage_counts: whether it matters where the data lies.
    """
    a, b = views
    found = [
        Change("initializers", "removed", scope, before=_text(*named))
        for i, named in enumerate(a.initializers)
        if i not in pairs
    ]
    partners = set(pairs.values())
    found += [
        Change("initializers", "added", scope, after=_text(*named))
        for j, named in enumerate(b.initializers)
        if j not in partners
    ]
    for i, j in sorted(pairs.items()):
        (name, x), (other, y) = a.initializers[i], b.initializers[j]
        details = _details(x, y, storage_counts=storage_counts)
        if details:
            # The name of a small constant is the exporter's counter: it is given where it stayed.
            texts = (name, other) if name == other or not (x.literal and y.literal) else (x.type_text, y.type_text)
            found.append(Change("initializers", "changed", scope, "", *texts, details=tuple(details)))
    return found


def _details(x: TensorView, y: TensorView, *, storage_counts: bool) -> list[Detail]:
    details = []
    if x[:2] != y[:2]:
        details.append(Detail("type", x.type_text, y.type_text))
    if x.digest is not None and y.digest is not None and x.digest != y.digest:
        texts = (x.literal, y.literal) if x.literal != y.literal else (x.digest.hex()[:8], y.digest.hex()[:8])
        details.append(Detail("data", *texts))
    if storage_counts:
        if x.storage != y.storage:
            details.append(Detail("storage", x.storage, y.storage))
        elif x.extent and y.extent and x.extent[0] == y.extent[0] and x.extent[1] != y.extent[1]:
            # Both models read one file: another offset is other data.
            details.append(Detail("offset", str(x.extent[1]), str(y.extent[1])))
    return details


def _text(name: str, tensor: TensorView) -> str:
    return f"{tensor.type_text} {tensor.literal}" if tensor.literal else f"{name}: {tensor.type_text}"


def _same_content(x: TensorView, y: TensorView) -> bool:
    return x.digest is not None and x[:3] == y[:3]


def _equal_contents(
    a: Sequence[Named], b: Sequence[Named], pairs: dict[int, int], taken: set[int]
) -> list[tuple[int, int]]:
    waiting: dict[Hashable, list[int]] = {}
    for j, (_, tensor) in enumerate(b):
        if j not in taken and tensor.digest is not None:
            waiting.setdefault(tensor[:3], []).append(j)
    found = []
    for i, (_, tensor) in enumerate(a):
        if i not in pairs and (group := waiting.get(tensor[:3])):
            found.append((i, group.pop(0)))
    return found
