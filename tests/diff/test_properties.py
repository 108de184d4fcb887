"""Properties of the diff on random graphs: the ground truth is the edit that was made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.model_edits import EDITS, Expected, edited
from support.random_models import disguised, in_a_branch, in_a_function, random_model

from deltallm_onnx.diff import GraphDiff, diff

_SEEDS = st.integers(0, 10**6)
_SIZES = st.integers(2, 40)
_run = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def _found(result: GraphDiff) -> Expected:
    counts = [len(result.select("nodes", action)) for action in ("removed", "added", "rewired", "changed")]
    return Expected(*counts, frozenset(change.before for change in result.select("outputs")))


@_run
@given(seed=_SEEDS, nodes=_SIZES, distinct=st.booleans())
def test_model_equals_itself(seed: int, nodes: int, distinct: bool) -> None:
    model = random_model(seed, nodes, distinct=distinct)
    assert diff(model, model).is_empty


@_run
@given(seed=_SEEDS, nodes=_SIZES, distinct=st.booleans())
def test_names_and_order_do_not_matter(seed: int, nodes: int, distinct: bool) -> None:
    model = random_model(seed, nodes, distinct=distinct)
    other = disguised(model, seed + 1)
    assert {n.name for n in other.graph.node}.isdisjoint(n.name for n in model.graph.node)
    assert diff(model, other).changes == ()


@pytest.mark.parametrize("kind", EDITS)
@_run
@given(seed=_SEEDS, nodes=_SIZES)
def test_one_edit_among_distinct_nodes_is_reported_exactly(kind: str, seed: int, nodes: int) -> None:
    model = random_model(seed, nodes, distinct=True)
    edit = edited(model, kind, seed + 1)
    if edit is None:
        return
    changed, expected = edit
    result = diff(model, disguised(changed, seed + 2))
    found = _found(result)
    # A shorter explanation than the edit that was made may exist (a node taken out beside one of its kind).
    assert found == expected or found.total < expected.total
    # The size of the graph is told exactly, whatever the explanation.
    assert found.added - found.removed == expected.added - expected.removed
    assert {change.section for change in result.changes} <= {"nodes", "outputs"}


@pytest.mark.parametrize("kind", EDITS)
@_run
@given(seed=_SEEDS, nodes=_SIZES)
def test_one_edit_among_nodes_that_are_alike_is_reported_within_bounds(kind: str, seed: int, nodes: int) -> None:
    model = random_model(seed, nodes, distinct=False)
    edit = edited(model, kind, seed + 1)
    if edit is None:
        return
    changed, expected = edit
    result = diff(model, disguised(changed, seed + 2))
    found = _found(result)
    assert found.added - found.removed == expected.added - expected.removed
    assert found.total <= expected.total + 4
    fresh = [change for change in result.select("nodes", "added") if change.op_type == "test.diff::Fresh"]
    assert len(fresh) == expected.added


@_run
@given(
    seed=_SEEDS, nodes=_SIZES, kinds=st.lists(st.sampled_from(EDITS), min_size=1, max_size=5), distinct=st.booleans()
)
def test_exchanging_the_models_mirrors_the_diff(seed: int, nodes: int, kinds: list[str], distinct: bool) -> None:
    a = b = random_model(seed, nodes, distinct=distinct)
    for n, kind in enumerate(kinds):
        b, _ = edited(b, kind, seed + n) or (b, None)
    there, back = diff(a, b), diff(b, a)
    assert back.changes == there.mirrored().changes
    assert back.nodes == (len(b.graph.node), len(a.graph.node))
    assert there.mirrored().mirrored() == there


@_run
@given(seed=_SEEDS, nodes=_SIZES, kinds=st.lists(st.sampled_from(EDITS), min_size=1, max_size=5, unique=True))
def test_matched_nodes_and_changes_add_up(seed: int, nodes: int, kinds: list[str]) -> None:
    a = b = random_model(seed, nodes, distinct=False)
    for kind in kinds:
        b, _ = edited(b, kind, seed) or (b, None)
    result = diff(a, b)
    found = _found(result)
    assert len(a.graph.node) - found.removed == len(b.graph.node) - found.added
    assert result.nodes == (len(a.graph.node), len(b.graph.node))


@_run
@given(seed=_SEEDS, nodes=_SIZES, kind=st.sampled_from(EDITS))
def test_json_and_text_are_stable(seed: int, nodes: int, kind: str) -> None:
    a = random_model(seed, nodes, distinct=False)
    b, _ = edited(a, kind, seed) or (a, None)
    result = diff(a, b)
    read_back = GraphDiff.from_dict(json.loads(json.dumps(result.to_dict())))
    assert read_back == result
    assert read_back.to_text() == result.to_text() == diff(a, b).to_text()


@_run
@given(seed=_SEEDS, nodes=_SIZES, kind=st.sampled_from(EDITS))
def test_report_does_not_depend_on_names_or_order(seed: int, nodes: int, kind: str) -> None:
    a = random_model(seed, nodes, distinct=True)
    b, _ = edited(a, kind, seed) or (a, None)
    plain, hidden = diff(a, b), diff(disguised(a, seed + 1), disguised(b, seed + 2))
    assert [(c.section, c.action, c.op_type) for c in hidden.changes] == [
        (c.section, c.action, c.op_type) for c in plain.changes
    ]


@pytest.mark.parametrize(
    ("wrap", "scope"), [(in_a_branch, "If.then_branch"), (in_a_function, "function test.diff::Whole")]
)
@_run
@given(seed=_SEEDS, nodes=_SIZES, kind=st.sampled_from(EDITS))
def test_inside_a_body_the_same_is_reported_as_in_a_main_graph(
    wrap: Callable[[onnx.ModelProto], onnx.ModelProto], scope: str, seed: int, nodes: int, kind: str
) -> None:
    a = random_model(seed, nodes, distinct=True)
    # Parameters of equal content could change places unseen.
    assume(len({tensor.raw_data for tensor in a.graph.initializer}) == len(a.graph.initializer))
    assert diff(wrap(a), wrap(disguised(a, seed + 1))).is_empty
    b, expected = edited(a, kind, seed + 2) or (a, Expected())
    inside = diff(wrap(a), wrap(disguised(b, seed + 3)))
    assert {change.scope for change in inside.changes} <= {(scope,)}
    found = Counter(change.action for change in inside.changes if change.section == "nodes")
    assert sum(found.values()) <= expected.total
    assert found["added"] - found["removed"] == expected.added - expected.removed
