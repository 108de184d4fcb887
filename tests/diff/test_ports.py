"""Inputs and outputs: names, types, order, and what gives an output."""

from __future__ import annotations

from support.written_models import change_of, only_change, written_model

from deltallm_onnx.diff import Detail, diff

_BASE = "main (float[B,3] x, float[B,5] y) => (float[B,8] z) { z = Concat<axis=1>(x, y) }"


def test_input_type_and_shape() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace("float[B,3] x", "float16[B,4] x"))
    change = change_of("inputs", "changed", "x", "x", ("type", "float32[B,3]", "float16[B,4]"))
    assert only_change(diff(a, b)) == change
    detail = Detail("type", "float32", "float16")
    assert only_change(diff(a, b, ignore=["shapes"])).details == (detail,)


def test_ignored_shapes_hide_a_changed_shape_and_nothing_else() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace("float[B,8] z", "float[N,9] z"))
    assert only_change(diff(a, b)).details == (Detail("type", "float32[B,8]", "float32[N,9]"),)
    assert diff(a, b, ignore=["shapes"]).is_empty


def test_renamed_input_is_one_change_and_rewires_nobody() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace(" x,", " ids,").replace("(x,", "(ids,"))
    assert only_change(diff(a, b)) == change_of("inputs", "changed", "x", "ids", ("name", "x", "ids"))
    assert diff(a, b, ignore=["names"]).is_empty


def test_renamed_output_is_one_change() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace(" z)", " logits)").replace("z =", "logits ="))
    assert only_change(diff(a, b)) == change_of("outputs", "changed", "z", "logits", ("name", "z", "logits"))
    assert diff(a, b, ignore={"names"}).is_empty


def test_renamed_dimension_counts_unless_names_are_ignored() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace("B,", "batch,"))
    assert [c.action for c in diff(a, b).changes] == ["changed"] * 3
    assert diff(a, b, ignore=["names"]).is_empty


def test_ignored_names_keep_dimensions_of_known_size() -> None:
    a, b = written_model(_BASE), written_model(_BASE.replace("float[B,8]", "float[B,9]"))
    assert not diff(a, b, ignore=["names"]).is_empty


def test_ignored_names_pair_inputs_of_one_type_in_their_order() -> None:
    text = "main (float[B,3] {0}, float[B,3] {1}) => (float[B,3] {2}) {{ {2} = Sub({0}, {1}) }}"
    a, b = written_model(text.format("x", "y", "z")), written_model(text.format("p", "q", "r"))
    assert diff(a, b, ignore=["names"]).is_empty
    assert [c.details[0].field for c in diff(a, b).changes] == ["name"] * 3


def test_added_input_and_output() -> None:
    b = _BASE.replace("[B,5] y)", "[B,5] y, int64[2] n)").replace("[B,8] z)", "[B,8] z, int64[2] m)")
    b = b.replace("{", "{ m = Identity(n)")
    result = diff(written_model(_BASE), written_model(b))
    assert result.select("inputs") == [change_of("inputs", "added", "", "n: int64[2]")]
    assert result.select("outputs") == [change_of("outputs", "added", "", "m: int64[2]")]
    assert [c.after for c in result.select("nodes", "added")] == ["Identity[n]"]
    assert len(result.changes) == 3


def test_order_of_inputs_is_an_interface() -> None:
    b = _BASE.replace("float[B,3] x, float[B,5] y", "float[B,5] y, float[B,3] x")
    assert only_change(diff(written_model(_BASE), written_model(b))) == change_of(
        "inputs", "changed", "order", "order", ("order", "x, y", "y, x")
    )


def test_output_that_reads_something_else() -> None:
    a = written_model("main (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Neg(x) }")
    b = written_model("main (float[3] x) => (float[3] y, float[3] z) { z = Relu(x) y = Neg(x) }")
    result = diff(a, b)
    assert [(c.before, c.details) for c in result.changes] == [
        ("y", (Detail("source", "Relu", "Neg"),)),
        ("z", (Detail("source", "Neg", "Relu"),)),
    ]
    assert {c.action for c in result.changes} == {"rewired"}
