"""The text: small, the same for any number of layers, and safe to print."""

from __future__ import annotations

import re

import onnx
import pytest
from support.layered_models import layered_model

from deltallm_onnx.diff import Change, Detail, GraphDiff, diff
from deltallm_onnx.diff.grouping import Line, collapse
from deltallm_onnx.errors import DeltaLLMError

_TWO_LAYERS = """\
nodes 16 → 12: 6 removed, 2 added, 2 rewired, 0 changed
  - 2 Attention
  - 1 Cast
  - 2 Reshape
  - 1 Shape
  + 2 ai.deltallm::DeltaAttention

versions added
  + opset ai.deltallm: 1

outputs rewired
  ~ present.{0..1}.key: source Attention:1 → ai.deltallm::DeltaAttention:1  ×2

initializers removed
  - int64[3] [0, -1, 12]

initializers added
  + deltallm.threshold.{0..1}: float32[2]  ×2

nodes removed
  - Attention(scale=0.125)[Q=MatMul, K=MatMul, V=MatMul, attn_mask=Cast, past_key=past_key_values.{0..1}.key]  ×2
  - Cast(to=9)[Shape]
  - Reshape[Attention, [0, -1, 12]]  ×2
  - Shape[input_ids]

nodes added
  + ai.deltallm::DeltaAttention(num_heads=4)[#0=MatMul, #1=MatMul, #2=MatMul, #3=past_key_values.{0..1}.key, \
#16=deltallm.threshold.{0..1}]  ×2

nodes rewired
  ~ MatMul[Reshape, model.layers.{0..1}.o_proj.weight]: input 0 (A) Reshape → ai.deltallm::DeltaAttention  ×2
"""


def test_replaced_attention_reads_as_one_change_per_kind() -> None:
    assert diff(layered_model(2, delta=False), layered_model(2, delta=True)).to_text() == _TWO_LAYERS


@pytest.mark.parametrize("layers", [4, 11])
def test_more_layers_change_the_numbers_only(layers: int) -> None:
    text = diff(layered_model(layers, delta=False), layered_model(layers, delta=True)).to_text()
    expected = _TWO_LAYERS.replace("{0..1}", f"{{0..{layers - 1}}}").replace("×2", f"×{layers}")
    expected = re.sub(r"(?m)^  ([-+]) 2 ", rf"  \1 {layers} ", expected)
    header = f"nodes {6 * layers + 4} → {5 * layers + 2}: {2 * layers + 2} removed, {layers} added, {layers} rewired"
    assert text == "\n".join([f"{header}, 0 changed", *expected.split("\n")[1:]])


def test_nothing_to_say() -> None:
    model = layered_model(2, delta=True)
    assert diff(model, model).to_text() == "no differences\n"


def test_weights_moved_to_another_file_are_one_line() -> None:
    a, b = (layered_model(3, delta=True, external=name) for name in ("dense.data", "out.data"))
    lines = diff(a, b).to_text().splitlines()
    assert lines[-1] == "  ~ stored in dense.data → out.data  ×11"
    assert diff(a, b, ignore=["storage"]).is_empty
    embedded = diff(layered_model(3, delta=True), b).to_text()
    assert "  ~ stored in embedded → out.data  ×11" in embedded


def test_nested_changes_stand_under_their_scope() -> None:
    result = GraphDiff(
        [
            Change("nodes", "added", ("function d::F", "If.then_branch"), "Relu", after="Relu[x]"),
            Change("nodes", "changed", (), "Op", "Op(k=1)[x]", "Op(k=2)[x]", (Detail("k", "1", "2"),)),
        ],
        (3, 3),
    )
    assert result.to_text().splitlines() == [
        "nodes 3 → 3: 0 removed, 0 added, 0 rewired, 1 changed",
        "",
        "nodes changed",
        "  ~ Op(k=1)[x]: k 1 → 2",
        "",
        "in function d::F / If.then_branch",
        "nodes: 0 removed, 1 added, 0 rewired, 0 changed",
        "  + 1 Relu",
        "",
        "nodes added",
        "  + Relu[x]",
    ]


def test_lines_that_differ_in_the_numbers_of_names_are_merged() -> None:
    lines = [f"model.layers.{n}.q: x_{n} Op(axis=1)[2,3]" for n in (0, 1, 2)]
    assert collapse(lines) == [Line("model.layers.{0..2}.q: x_{0..2} Op(axis=1)[2,3]", 3)]


def test_numbers_that_are_no_part_of_a_name_keep_lines_apart() -> None:
    lines = ["Op(axis=1)[a]", "Op(axis=2)[a]", "x: float32[2]", "x: float32[3]", "Op(eps=0.5)[a]", "Op(eps=0.25)[a]"]
    assert collapse(lines) == [Line(line, 1) for line in lines]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([4, 4, 4], "a.4"),
        ([3, 1, 2], "a.{1..3}"),
        ([0, 2, 9], "a.{0,2,9}"),
        ([1, 3, 5, 7, 9, 11, 13], "a.{7 of 1..13}"),
    ],
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert collapse(f"a.{n}" for n in numbers) == [Line(text, len(numbers))]


def test_names_cannot_break_lines_or_reach_the_terminal() -> None:
    (line,) = collapse(["a\nb\x1b[31m\0c.0"])
    assert line.text == "a\\nb\\x1b[31m\\x00c.0"


def test_dict_of_another_format_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="graph diff of version 1"):
        GraphDiff.from_dict({"format": "other"})
    good = diff(layered_model(2, delta=False), layered_model(2, delta=True)).to_dict()
    good["changes"][0].pop("scope")
    with pytest.raises(DeltaLLMError, match="malformed"):
        GraphDiff.from_dict(good)


def test_counts_in_the_dict() -> None:
    counts = diff(layered_model(3, delta=False), layered_model(3, delta=True)).to_dict()["counts"]
    assert counts == {
        "versions": {"added": 1},
        "outputs": {"rewired": 3},
        "initializers": {"removed": 1, "added": 3},
        "nodes": {"removed": 8, "added": 3, "rewired": 3},
    }


def test_formal_names_come_from_the_model_s_own_functions() -> None:
    model = layered_model(2, delta=True)
    names = ["query", "key", "value", "past_key", *[f"unused_{n}" for n in range(12)], "threshold"]
    body = [
        onnx.helper.make_node("Identity", ["query"], ["out"]),
        onnx.helper.make_node("Identity", ["past_key"], ["k"]),
    ]
    opsets = [onnx.helper.make_opsetid("", 23)]
    model.functions.append(
        onnx.helper.make_function("ai.deltallm", "DeltaAttention", names, ["out", "k"], body, opsets)
    )
    text = diff(layered_model(2, delta=False), model).to_text()
    assert "[query=MatMul, key=MatMul, value=MatMul, past_key=past_key_values.{0..1}.key, threshold=" in text
    assert "  + ai.deltallm::DeltaAttention (17 inputs, 2 outputs, 2 nodes)" in text
