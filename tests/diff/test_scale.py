"""Work grows with the size of the models: counted, not timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper
from support.layered_models import layered_model

from deltallm_onnx.diff import diff
from deltallm_onnx.diff.hashing import Interner
from deltallm_onnx.diff.match import Match

_Counts = Counter[str]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> _Counts:
    """Counts the elementary steps: structures interned, candidates weighed, operands compared."""
    counts: _Counts = Counter()

    def counted(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(Interner, "__call__")
    counted(Match, "_score")
    counted(Match, "same")
    return counts


def _work(counts: _Counts, a: onnx.ModelProto, b: onnx.ModelProto) -> dict[str, float]:
    counts.clear()
    diff(a, b)
    nodes = len(a.graph.node) + len(b.graph.node)
    return {name: count / nodes for name, count in counts.items()}


def test_work_per_node_does_not_grow_with_the_number_of_changed_layers(work: _Counts) -> None:
    small, large = (_work(work, layered_model(n, delta=False), layered_model(n, delta=True)) for n in (30, 240))
    assert small.keys() == large.keys() == {"__call__", "_score", "same"}
    for name, count in large.items():
        assert count < 1.2 * small[name] + 1, name
        assert count < 60, name


def _fan(readers: int, ends: str, other: str) -> onnx.ModelProto:
    """One value that many nodes, all alike, read together with another; every second one is a dead end."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3]) for name in ("x", "w", "z")]
    nodes = [helper.make_node(ends, ["x"], ["y"]), helper.make_node(other, ["w"], ["v"])]
    nodes += [helper.make_node("Op", ["y", "v"], [f"y{n}"], domain="test.diff", kind=n % 3) for n in range(readers)]
    nodes += [helper.make_node("Concat", [f"y{n}" for n in range(0, readers, 2)], ["c"], axis=0)]
    nodes += [helper.make_node(ends, ["c"], ["z"])]
    graph = helper.make_graph(nodes, "fan", ports[:2], ports[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("test.diff", 1)])


@pytest.mark.parametrize(
    ("before", "after", "replaced"),
    [(("Relu", "Abs"), ("Neg", "Abs"), 2), (("Relu", "Abs"), ("Relu", "Exp"), 1)],
    ids=["both ends", "one operand of each"],
)
def test_value_with_many_readers_that_are_alike(
    work: _Counts, before: tuple[str, str], after: tuple[str, str], replaced: int
) -> None:
    small, large = (_work(work, _fan(n, *before), _fan(n, *after)) for n in (150, 1200))
    for name, count in large.items():
        assert count < 1.2 * small[name] + 1, name
    result = diff(_fan(1200, *before), _fan(1200, *after))
    found = Counter(change.action for change in result.select("nodes"))
    assert found == {"removed": replaced, "added": replaced, "rewired": 1200}
