"""Bodies, functions, versions, metadata, and the call itself."""

from __future__ import annotations

import pytest
from support.written_models import only_change, written_model

from deltallm_onnx.diff import IGNORABLE, Detail, diff
from deltallm_onnx.errors import DeltaLLMError

_BASE = "main (float[B,3] x, float[B,5] y) => (float[B,8] z) { z = Concat<axis=1>(x, y) }"

# -- bodies ----------------------------------------------------------------------------------------------------------

_IF = """main (bool c, float[3] x) => (float[3] z) {{
    y = Relu(x)
    z = If (c) <then_branch = a () => (float[3] r) {{ r = {} }}, else_branch = b () => (float[3] s) {{ s = Neg(y) }}>
}}"""


def test_renamed_bodies_are_equal() -> None:
    other = _IF.format("Abs(y)").replace("y", "yy").replace(" r ", " rr ").replace(" r)", " rr)")
    assert diff(written_model(_IF.format("Abs(y)")), written_model(other)).is_empty


def test_change_in_a_body_is_reported_there() -> None:
    a, b = written_model(_IF.format("test.diff.Op<k=1>(y)")), written_model(_IF.format("test.diff.Op<k=2>(y)"))
    change = only_change(diff(a, b))
    assert change.scope == ("If.then_branch",)
    assert (change.action, change.details) == ("changed", (Detail("k", "1", "2"),))


def test_captured_value_that_becomes_another() -> None:
    change = only_change(diff(written_model(_IF.format("Abs(y)")), written_model(_IF.format("Abs(x)"))))
    assert change.scope == ("If.then_branch",)
    assert (change.action, change.details) == ("rewired", (Detail("input 0", "Relu", "x"),))


def test_captured_value_that_is_computed_differently_is_no_change_of_the_body() -> None:
    a = written_model(_IF.format("Abs(y)"))
    b = written_model(_IF.format("Abs(y)").replace("y = Relu(x)", "w = Sigmoid(x) y = Relu(w)"))
    result = diff(a, b)
    assert [(c.scope, c.action, c.op_type) for c in result.changes] == [
        ((), "added", "Sigmoid"),
        ((), "rewired", "Relu"),
    ]


def test_equal_bodies_that_capture_different_values_are_different_nodes() -> None:
    body = """If (c) <
        then_branch = a () => (float[3] r) {{ r = Abs({}) }},
        else_branch = b () => (float[3] s) {{ s = Neg({}) }}>"""
    text = """main (bool c, float[3] x, float[3] y) => (float[3] z) {{
        p = {}
        q = {}
        z = Sub({})
    }}"""
    a, b = (
        written_model(text.format(body.format("x", "x"), body.format("y", "y"), order)) for order in ("p, q", "q, p")
    )
    change = only_change(diff(a, b))
    assert (change.action, change.op_type) == ("rewired", "Sub")
    assert [(detail.before, detail.after) for detail in change.details] != [("If", "If")] * 2


def test_captured_expression_that_is_no_longer_repeated_is_the_same_value() -> None:
    a = _IF.format("Abs(w)").replace("y = Relu(x)", "y = Relu(x) w = Relu(x)")
    change = only_change(diff(written_model(a), written_model(_IF.format("Abs(y)"))))
    assert (change.scope, change.action, change.before) == ((), "removed", "Relu[x]")


def test_body_output_that_reads_something_else() -> None:
    text = _IF.replace("r = {}", "p = Abs(x) q = Neg(p) r = {}(q)")
    result = diff(written_model(text.format("Relu")), written_model(text.format("Identity")))
    assert {c.scope for c in result.changes} == {("If.then_branch",)}
    assert [(c.section, c.action) for c in result.changes] == [
        ("outputs", "rewired"),
        ("nodes", "removed"),
        ("nodes", "added"),
    ]


# -- functions, versions, metadata -----------------------------------------------------------------------------------

_CALL = "main (float[3] x) => (float[3] z) { z = test.diff.Twice(x) }"
_TWICE = '<domain: "test.diff", opset_import: ["" : 21]> Twice (x) => (y) { y = Add(x, x) }'


def test_added_function() -> None:
    change = only_change(diff(written_model(_CALL), written_model(f"{_CALL} {_TWICE}")))
    assert (change.section, change.action) == ("functions", "added")
    assert change.after == "test.diff::Twice (1 inputs, 1 outputs, 1 nodes)"


def test_function_parameters_are_positions_not_names() -> None:
    renamed = _TWICE.replace("(x)", "(k)").replace("(x, x)", "(k, k)").replace("y", "out")
    assert diff(written_model(f"{_CALL} {_TWICE}"), written_model(f"{_CALL} {renamed}")).is_empty


def test_changed_function_body() -> None:
    result = diff(written_model(f"{_CALL} {_TWICE}"), written_model(f"{_CALL} {_TWICE.replace('Add', 'Mul')}"))
    assert {c.scope for c in result.changes} == {("function test.diff::Twice",)}
    assert [(c.section, c.action, c.op_type) for c in result.changes] == [
        ("outputs", "rewired", ""),
        ("nodes", "removed", "Add"),
        ("nodes", "added", "Mul"),
    ]


def test_changed_function_signature() -> None:
    wider = _TWICE.replace("(x) =>", "(x, unused) =>").replace('"" : 21', '"" : 22')
    result = diff(written_model(f"{_CALL} {_TWICE}"), written_model(f"{_CALL} {wider}"))
    assert [(c.section, c.action, c.after) for c in result.changes] == [
        ("functions", "changed", "test.diff::Twice"),
        ("inputs", "added", "1: unused"),
    ]
    assert result.changes[0].details == (Detail("opset ai.onnx", "21", "22"),)


def test_versions() -> None:
    a, b = written_model(_BASE), written_model(_BASE)
    b.opset_import[0].version = 23
    b.opset_import.add(domain="ai.deltallm", version=1)
    b.ir_version = 11
    assert [(c.action, c.before or c.after) for c in diff(a, b).changes] == [
        ("added", "opset ai.deltallm: 1"),
        ("changed", "ir_version"),
        ("changed", "opset ai.onnx"),
    ]


def test_metadata_counts_unless_ignored() -> None:
    a, b = written_model(_BASE), written_model(_BASE)
    b.metadata_props.add(key="deltallm.version", value="0.1.0")
    b.producer_name, b.graph.doc_string, b.graph.name = "other", "words", "other"
    result = diff(a, b)
    assert {c.section for c in result.changes} == {"metadata"}
    assert len(result.changes) == 4
    assert diff(a, b, ignore=["metadata"]).is_empty


def test_notes_on_nodes_never_count() -> None:
    a, b = written_model(_BASE), written_model(_BASE)
    b.graph.node[0].doc_string = "File model.py, line 7"
    b.graph.node[0].metadata_props.add(key="namespace", value="layers.0")
    assert diff(a, b).is_empty


# -- the call --------------------------------------------------------------------------------------------------------


def test_unknown_word_in_ignore_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match=r"^Cannot ignore 'weights': choose among names, .*storage\.$"):
        diff(written_model(_BASE), written_model(_BASE), ignore=["weights"])
    with pytest.raises(DeltaLLMError, match="give a list"):
        diff(written_model(_BASE), written_model(_BASE), ignore="names")
    assert diff(written_model(_BASE), written_model(_BASE), ignore=IGNORABLE).is_empty


def test_neither_model_is_changed() -> None:
    a, b = written_model(_IF.format("Abs(y)")), written_model(_BASE)
    before = a.SerializeToString(deterministic=True), b.SerializeToString(deterministic=True)
    diff(a, b)
    assert (a.SerializeToString(deterministic=True), b.SerializeToString(deterministic=True)) == before
