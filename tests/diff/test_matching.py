"""Graphs that can only be matched by one of the matcher's means each."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import helper
from support.written_models import written_model

from deltallm_onnx.diff import Detail, GraphDiff, diff


def _operators(result: GraphDiff, action: str) -> list[str]:
    return sorted(change.op_type for change in result.select("nodes", action))


def _chain(first: str, last: str) -> onnx.ModelProto:
    """Two operators without weights or attributes: every pair of neighbours occurs several times."""
    middle = ["Abs" if letter == "a" else "Neg" for letter in "abbababbbaabaaabbabaabba"]
    ops = [first, *middle, last]
    nodes = [
        helper.make_node(op, [f"v{n}"], [f"v{n + 1}"], domain="test.diff" if op in (first, last) else "")
        for n, op in enumerate(ops)
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3]) for name in ("v0", f"v{len(ops)}")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("test.diff", 1)]
    return helper.make_model(helper.make_graph(nodes, "chain", ports[:1], ports[1:]), opset_imports=opsets)


def test_middle_without_any_name_is_found_by_what_is_some_steps_around() -> None:
    result = diff(_chain("First", "Last"), _chain("Other", "End"))
    assert _operators(result, "removed") == ["test.diff::First", "test.diff::Last"]
    assert _operators(result, "added") == ["test.diff::End", "test.diff::Other"]
    assert _operators(result, "rewired") == ["Abs"]
    assert [change.details[0].field for change in result.select("outputs")] == ["source"]


def test_node_between_two_changes_is_found_by_what_it_reads() -> None:
    text = """main (float[3] x) => (float[3] z) {{
        a = test.diff.{0}(x)
        b = Abs(a)
        c = Neg(a)
        d = Exp(a)
        e = Concat<axis=0>(b, c, d)
        z = test.diff.{1}(e)
    }}"""
    result = diff(written_model(text.format("First", "Last")), written_model(text.format("Other", "End")))
    assert _operators(result, "rewired") == ["Abs", "Exp", "Neg"]
    assert Counter(change.action for change in result.select("nodes")) == {"removed": 2, "added": 2, "rewired": 3}


def test_node_between_two_changes_is_found_by_who_reads_it() -> None:
    text = """main (float[3] x) => (float[3] z, float[3] y) {{
        a = test.diff.{0}(x)
        b, c = Split<axis=0>(a)
        d = Abs(b)
        e = Neg(c)
        y = test.diff.{1}(d)
        z = test.diff.{1}(e)
    }}"""
    result = diff(written_model(text.format("First", "Last")), written_model(text.format("Other", "End")))
    assert _operators(result, "rewired") == ["Split"]
    assert Counter(change.action for change in result.select("nodes")) == {"removed": 3, "added": 3, "rewired": 1}


def test_node_between_changes_on_all_sides_of_it_and_its_reader() -> None:
    text = """main (float[3] x, float[3] y) => (float[3] z) {{
        a = test.diff.{0}(x)
        b = Abs(a)
        c = test.diff.{0}(y)
        d = Sub(b, c)
        z = test.diff.{1}(d)
    }}"""
    result = diff(written_model(text.format("First", "Last")), written_model(text.format("Other", "End")))
    assert _operators(result, "rewired") == ["Abs", "Sub"]
    assert Counter(change.action for change in result.select("nodes")) == {"removed": 3, "added": 3, "rewired": 2}


def test_node_with_all_operands_replaced_is_found_by_its_reader() -> None:
    text = "main (float[3] a, float[3] b, float[3] c, float[3] d) => (float[3] z) {{ y = test.diff.Op({}) z = Abs(y) }}"
    (change,) = diff(written_model(text.format("a, b")), written_model(text.format("c, d"))).changes
    assert (change.action, change.op_type) == ("rewired", "test.diff::Op")
    assert change.details == (Detail("input 0", "a", "c"), Detail("input 1", "b", "d"))


def test_dead_end_with_all_operands_replaced_is_found_by_itself() -> None:
    text = "main (float[3] a, float[3] b) => (float[3] z) {{ z = Neg(a) y = Abs({}) }}"
    (change,) = diff(written_model(text.format("a")), written_model(text.format("b"))).changes
    assert (change.action, change.op_type, change.details) == ("rewired", "Abs", (Detail("input 0", "a", "b"),))


def test_equal_branches_are_told_apart_by_their_place() -> None:
    """Which of two equal nodes was changed is decided by who reads it."""
    text = """main (float[3] x) => (float[3] y, float[3] z) {{
        a = test.diff.Op<k={0}>(x)
        b = test.diff.Op<k={1}>(x)
        y = Neg(a)
        z = Abs(b)
    }}"""
    (change,) = diff(written_model(text.format(1, 1)), written_model(text.format(1, 2))).changes
    assert (change.action, change.details) == ("changed", (Detail("k", "1", "2"),))
