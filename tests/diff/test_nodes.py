"""Nodes: operators, attributes, operands, outputs."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from support.written_models import only_change, written_model

from deltallm_onnx.diff import Detail, diff


def test_swapped_operands_count_only_where_order_means_something() -> None:
    add = "main (float[3] x, float[3] y) => (float[3] z) { z = Add(x, y) }"
    assert diff(written_model(add), written_model(add.replace("(x, y) }", "(y, x) }"))).is_empty
    sub = add.replace("Add", "Sub")
    change = only_change(diff(written_model(sub), written_model(sub.replace("(x, y) }", "(y, x) }"))))
    assert (change.action, change.op_type) == ("rewired", "Sub")
    assert change.details == (Detail("input 0 (A)", "x", "y"), Detail("input 1 (B)", "y", "x"))


@pytest.mark.parametrize(
    ("before", "after", "detail"),
    [
        ("axis=1", "axis=-1", Detail("axis", "1", "-1")),
        ("axis=1", 'axis=1, mode="a"', Detail("mode", "", "'a'")),
        ("axis=1, eps=0.5", "axis=1, eps=0.25", Detail("eps", "0.5", "0.25")),
        ("axis=1, perm=[0, 2]", "axis=1, perm=[2, 0]", Detail("perm", "[0, 2]", "[2, 0]")),
    ],
)
def test_changed_attribute(before: str, after: str, detail: Detail) -> None:
    text = "main (float[3] x) => (float[3] z) {{ y = Relu(x) w = test.diff.Op<{}>(y) z = Neg(w) }}"
    change = only_change(diff(written_model(text.format(before)), written_model(text.format(after))))
    assert (change.section, change.action, change.op_type) == ("nodes", "changed", "test.diff::Op")
    assert change.details == (detail,)


def test_attributes_that_round_to_one_text_are_still_told_apart() -> None:
    text = "main (float[3] x) => (float[3] z) {{ z = test.diff.Op<eps={}>(x) }}"
    change = only_change(diff(written_model(text.format("0.10000001")), written_model(text.format("0.10000002"))))
    (detail,) = change.details
    assert detail.before != detail.after


def test_attribute_given_in_python_equals_the_float32_of_a_file() -> None:
    a = written_model("main (float[3] x) => (float[3] z) { z = test.diff.Op<eps=0.1>(x) }")
    b = ir.from_proto(a)
    next(iter(b.graph)).attributes["eps"] = ir.AttrFloat32("eps", 0.1)
    assert diff(a, b).is_empty


def test_operator_of_another_domain_is_another_operator() -> None:
    a = written_model("main (float[3] x) => (float[3] z) { z = Relu(x) }")
    b = written_model("main (float[3] x) => (float[3] z) { z = test.diff.Relu(x) }")
    result = diff(a, b)
    assert [(c.action, c.op_type) for c in result.select("nodes")] == [
        ("removed", "Relu"),
        ("added", "test.diff::Relu"),
    ]


def test_default_domain_has_two_spellings() -> None:
    a = written_model("main (float[3] x) => (float[3] z) { z = Relu(x) }")
    b = written_model("main (float[3] x) => (float[3] z) { z = Relu(x) }")
    b.graph.node[0].domain = "ai.onnx"
    assert diff(a, b).is_empty


def test_trailing_absent_operands_and_outputs_do_not_count() -> None:
    a = written_model("main (float[3] x) => (float[3] z) { z = Clip(x) }")
    b = written_model("main (float[3] x) => (float[3] z) { z = Clip(x) }")
    b.graph.node[0].input.extend(["", ""])
    b.graph.node[0].output.append("")
    assert diff(a, b).is_empty


def test_absent_operand_in_the_middle_counts() -> None:
    text = "main (float[3] x, float m) => (float[3] z) {{ z = Clip(x, {}) }}"
    (change,) = diff(written_model(text.format("m")), written_model(text.format(", m"))).select("nodes")
    assert change.details == (Detail("input 1 (min)", "m", "nothing"), Detail("input 2 (max)", "", "m"))


def test_other_output_of_the_same_node_is_a_rewiring() -> None:
    text = "main (float[4] x) => (float[2] z) {{ a, b = Split<axis=0, num_outputs=2>(x) z = Neg({}) }}"
    change = only_change(diff(written_model(text.format("a")), written_model(text.format("b"))))
    assert (change.action, change.details) == ("rewired", (Detail("input 0", "Split", "Split:1"),))


def test_other_outputs_present_is_a_change() -> None:
    a = written_model("main (float[3] x) => (float[3] z) { z = test.diff.Op(x) }")
    b = written_model("main (float[3] x) => (float[3] z) { z, w = test.diff.Op(x) }")
    assert only_change(diff(a, b)).details == (Detail("outputs", "[0]", "[0, 1]"),)


def test_shared_and_repeated_expressions_differ_by_the_repeated_nodes_only() -> None:
    shared = "main (float[3] x) => (float[3] z) { a = Relu(x) z = Sub(a, a) }"
    repeated = "main (float[3] x) => (float[3] z) { a = Relu(x) b = Relu(x) z = Sub(a, b) }"
    change = only_change(diff(written_model(shared), written_model(repeated)))
    assert (change.action, change.after) == ("added", "Relu[x]")


def test_swapped_operands_are_a_repeated_expression_too() -> None:
    shared = "main (float[3] x, float[3] y) => (float[3] z) { a = Add(x, y) z = Sub(a, a) }"
    repeated = "main (float[3] x, float[3] y) => (float[3] z) { a = Add(x, y) b = Add(y, x) z = Sub(a, b) }"
    change = only_change(diff(written_model(shared), written_model(repeated)))
    assert (change.action, change.after) == ("added", "Add[x, y]")


def test_random_numbers_are_no_repeated_expressions() -> None:
    draw = "RandomNormal<shape=[3]>()"
    same = f"main () => (float[3] z, float[3] y) {{ a = {draw} b = {draw} z = Sub(a, a) y = Neg(b) }}"
    both = f"main () => (float[3] z, float[3] y) {{ a = {draw} b = {draw} z = Sub(a, b) y = Neg(b) }}"
    change = only_change(diff(written_model(same), written_model(both)))
    assert (change.action, change.op_type) == ("rewired", "Sub")


def test_undefined_value_is_compared_by_its_name() -> None:
    text = "main (float[3] x) => (float[3] z) {{ z = Add(x, {}) }}"
    assert diff(written_model(text.format("ghost")), written_model(text.format("ghost"))).is_empty
    change = only_change(diff(written_model(text.format("ghost")), written_model(text.format("spook"))))
    assert change.details == (Detail("input", "undefined ghost", "undefined spook"),)
