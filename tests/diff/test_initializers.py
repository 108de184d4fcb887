"""Initializers: content, type, and names that mean something or nothing."""

from __future__ import annotations

from support.written_models import only_change, written_model

from deltallm_onnx.diff import Detail, diff

_WEIGHTED = "main (float[3] x) => (float[3] z) <float[3] w = {{{}}}> {{ z = Mul(x, w) }}"


def test_changed_data() -> None:
    change = only_change(diff(written_model(_WEIGHTED.format("1, 2, 3")), written_model(_WEIGHTED.format("1, 2, 4"))))
    assert (change.section, change.action, change.before, change.after) == ("initializers", "changed", "w", "w")
    (detail,) = change.details
    assert detail.field == "data"
    assert detail.before != detail.after


def test_changed_type_of_initializer() -> None:
    a = written_model(_WEIGHTED.format("1, 2, 3"))
    b = written_model(_WEIGHTED.replace("<float[3]", "<float16[1]").format("1"))
    assert Detail("type", "float32[3]", "float16[1]") in only_change(diff(a, b)).details


def test_ignored_initializers() -> None:
    a, b = written_model(_WEIGHTED.format("1, 2, 3")), written_model(_WEIGHTED.format("1, 2, 4"))
    assert diff(a, b, ignore=["initializers"]).is_empty


def test_weights_trained_further_are_changed_data_and_nothing_else() -> None:
    weights = "float[3] u = {{{0},1,2}}, float[3] v = {{{0},1,3}}, float[3] w = {{{0},1,4}}"
    head = f"main (float[3] x) => (float[3] z) <{weights}>"
    lines = ["a = Mul(x, u)", "b = Mul(x, v)", "c = Mul(x, w)"]
    last = "z = Max(a, b, c)"
    a = written_model(head.format(7) + "{ " + " ".join([*lines, last]) + " }")
    b = written_model(head.format(8) + "{ " + " ".join([*lines[::-1], last]) + " }")
    changes = [(c.section, c.action, c.before, c.details[0].field) for c in diff(a, b).changes]
    assert changes == [("initializers", "changed", name, "data") for name in "uvw"]


def test_names_that_an_exporter_counted_anew_are_no_change() -> None:
    weights = "float[3] {0} = {{7,1,2}}, float[3] {1} = {{7,1,3}}, float[3] {2} = {{7,1,4}}"
    text = (
        f"main (float[3] x) => (float[9] z) <{weights}>"
        """ {{
        a = Mul(x, {0})
        b = Mul(x, {1})
        c = Mul(x, {2})
        z = Concat<axis=0>(a, b, c)
    }}"""
    )
    assert diff(
        written_model(text.format("w_1", "w_2", "w_3")), written_model(text.format("w_2", "w_3", "w_4"))
    ).is_empty


def test_ignored_initializers_count_by_their_type_as_operands() -> None:
    text = """main (bool c, float[3] x) => (float[3] z, float[3] q) <float[3] u = {{1,2,3}}, float[3] w = {{4,5,6}}> {{
        y = Mul(x, {0})
        z = Add(y, {1})
        q = If (c) <
            then_branch = a () => (float[3] r) {{ r = Abs({0}) }},
            else_branch = b () => (float[3] s) {{ s = Abs({1}) }}>
    }}"""
    a, b = written_model(text.format("u", "w")), written_model(text.format("w", "u"))
    assert diff(a, b, ignore=["initializers"]).is_empty
    assert not diff(a, b).is_empty
    c = written_model(text.format("u", "w").replace("float[3] w = {4,5,6}", "float[1] w = {4}"))
    assert {change.op_type for change in diff(a, c, ignore=["initializers"]).changes} == {"Add", "Abs"}


def test_small_constant_is_told_by_value_not_by_its_counter() -> None:
    text = """main (float[6] x) => (float[2,3] z) <int64[2] {0} = {{2, 3}}, int64[1] {1} = {{6}}> {{
        y = Reshape(x, {1})
        z = Reshape(y, {0})
    }}"""
    a = written_model(text.format("val_0", "val_1"))
    assert diff(a, written_model(text.format("val_1", "val_0"))).is_empty
    b = written_model(text.format("val_8", "val_9").replace("{2, 3}", "{3, 2}"))
    change = only_change(diff(a, b))
    assert change.details == (Detail("data", "[2, 3]", "[3, 2]"),)
    assert change.before == change.after == "int64[2]"


def test_small_constant_goes_with_its_reader_not_with_its_name() -> None:
    a = written_model("main (float[6] x) => (float[6] z) <int64[1] val_0 = {12}> { z = Reshape(x, val_0) }")
    two = "<int64[1] val_0 = {99}, int64[1] val_1 = {100}>"
    b = written_model(f"main (float[6] x) => (float[6] z) {two} {{ y = test.diff.Op(x, val_0) z = Reshape(x, val_1) }}")
    changes = [(c.section, c.action, c.after) for c in diff(a, b).changes]
    assert changes == [
        ("initializers", "added", "int64[1] [99]"),
        ("initializers", "changed", "int64[1]"),
        ("nodes", "added", "test.diff::Op[x, [99]]"),
    ]


def test_small_constants_of_one_name_do_not_make_nodes_equal() -> None:
    a = written_model("main (float[6] x) => (float[6] z) <int64[1] val_0 = {12}> { r = Reshape(x, val_0) z = Abs(r) }")
    b = written_model("""main (float[6] x) => (float[6] z, float[6] y) <int64[1] val_0 = {99}, int64[1] val_1 = {100}> {
        q = Reshape(x, val_0)
        r = Reshape(x, val_1)
        y = Neg(q)
        z = Abs(r)
    }""")
    result = diff(a, b)
    assert [(c.action, c.details) for c in result.select("initializers", "changed")] == [
        ("changed", (Detail("data", "[12]", "[100]"),))
    ]
    assert [(c.action, c.op_type) for c in result.select("nodes")] == [("added", "Neg"), ("added", "Reshape")]


def test_weights_trained_further_and_swapped_are_both() -> None:
    text = """main (float[3] x) => (float[3] z) <float[3] u = {{{0},2,3}}, float[3] w = {{{0},5,6}}> {{
        y = Mul(x, {1})
        z = Add(y, {2})
    }}"""
    result = diff(written_model(text.format(1, "u", "w")), written_model(text.format(7, "w", "u")))
    assert [(c.action, c.before) for c in result.select("initializers")] == [("changed", "u"), ("changed", "w")]
    assert {c.op_type for c in result.select("nodes", "rewired")} == {"Add", "Mul"}


def test_swapped_weights_are_a_rewiring() -> None:
    text = """main (float[3] x) => (float[3] z) <float[3] u = {{1,2,3}}, float[3] w = {{4,5,6}}> {{
        y = Mul(x, {})
        z = Add(y, {})
    }}"""
    result = diff(written_model(text.format("u", "w")), written_model(text.format("w", "u")))
    assert [(c.action, c.op_type, c.details[0]) for c in result.changes] == [
        ("rewired", "Add", Detail("input", "w", "u")),
        ("rewired", "Mul", Detail("input", "u", "w")),
    ]


def test_added_and_removed_initializers() -> None:
    a = written_model("main (float[3] x) => (float[3] z) <float[3] w = {1,2,3}> { z = Identity(x) }")
    b = written_model("main (float[3] x) => (float[3] z) <float[5] t = {1,2,3,4,5}> { z = Identity(x) }")
    assert [(c.action, c.before, c.after) for c in diff(a, b).changes] == [
        ("removed", "w: float32[3]", ""),
        ("added", "", "t: float32[5]"),
    ]


def test_equal_constants_may_become_one() -> None:
    text = "main (float[6] x) => (float[6] z) <{}> {{ y = test.diff.Op(x, {}) z = Reshape(y, {}) }}"
    a = written_model(text.format("int64[1] u = {6}, int64[1] v = {6}", "u", "v"))
    b = written_model(text.format("int64[1] w = {6}", "w", "w"))
    assert [(c.section, c.action, c.before) for c in diff(a, b).changes] == [
        ("initializers", "removed", "int64[1] [6]")
    ]


def test_equal_weights_are_told_apart_by_their_place() -> None:
    ones = "{1, 1, 1}"
    two = f"<float[3] u = {ones}, float[3] v = {ones}>"
    a = f"main (float[3] x) => (float[3] z) {two} {{ y = Sub(x, u) z = Mul(y, v) }}"
    b = f"main (float[3] x) => (float[3] z) <float[3] w = {ones}> {{ z = Mul(x, w) }}"
    assert [c.before for c in diff(written_model(a), written_model(b)).select("initializers")] == ["u: float32[3]"]


def test_initializer_of_one_name_under_another_operator_is_the_same_initializer() -> None:
    a = written_model("main (float[3] x) => (float[3] z) <float[3] w = {1,2,3}> { z = Sub(x, w) }")
    b = written_model("main (float[3] x) => (float[3] z) <float16[3] w = {4,5,6}> { z = test.diff.Op(w, x) }")
    (change,) = diff(a, b).select("initializers")
    assert (change.action, change.before, change.details[0]) == (
        "changed",
        "w",
        Detail("type", "float32[3]", "float16[3]"),
    )
