"""`--rule` in, the same name out of `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.command_line import Outcome

Run = Callable[..., Outcome]

#: Options, the attribute in the file, and the name.
NAMES = {
    "by default": ((), "relative", "relative"),
    "relative": (("--rule", "relative"), "relative", "relative"),
    "absolute": (("--rule", "absolute"), "absolute", "absolute"),
    "absolute in a float cache": (("--rule", "absolute", "--cache-format", "float16"), "absolute", "absolute"),
    "uniform": (("--granularity", "element", "--rule", "uniform"), "relative", "uniform"),
    "element by default": (("--granularity", "element"), "relative", "uniform"),
}


@pytest.mark.parametrize("case", NAMES)
def test_inspect_calls_it_as_the_option_does(deltallm: Run, dense: Path, tmp_path: Path, case: str) -> None:
    options, attribute, name = NAMES[case]
    out = tmp_path / "delta.onnx"
    outcome = deltallm("rewrite", dense, out, "--threshold", "0.2", "--window", "9", *options)
    assert outcome.code == 0, outcome
    nodes = [node for node in onnx.load(out).graph.node if node.op_type == "DeltaAttention"]
    values = {entry.name: onnx.helper.get_attribute_value(entry) for node in nodes for entry in node.attribute}
    assert values["row_rule"] == attribute.encode()
    found = deltallm("inspect", out, "--json").json
    assert [site["rule"] for site in found["sites"]] == [name, name]
    shared = next(line for line in deltallm("inspect", out).out.splitlines() if line.startswith("every site: "))
    assert f"rule={name}" in shared
    assert "row_rule" not in shared


def test_a_dense_model_has_no_rule(deltallm: Run, dense: Path) -> None:
    assert [site["rule"] for site in deltallm("inspect", dense, "--json").json["sites"]] == [None, None]
    assert "rule=" not in deltallm("inspect", dense).out


@pytest.mark.parametrize(
    ("plan", "shown"),
    [
        ("not JSON", "deltallm.plan: not JSON\n"),
        ('{"rules": 3}', "deltallm.plan: {'rules': 3}\n"),
        ('{"rules": {"row absolute": 3}}', "deltallm.plan: {'rules': {'row absolute': 3}}\n"),
        ('{"rules": {"odd": [1]}}', "deltallm.plan: odd in layer 1; sha256 None\n"),
    ],
)
def test_what_a_file_says_of_its_plan_is_not_believed(deltallm: Run, delta: Path, plan: str, shown: str) -> None:
    model = onnx.load(delta)
    onnx.helper.set_model_props(model, {"deltallm.plan": plan})
    onnx.save(model, delta)
    outcome = deltallm("inspect", delta)
    assert outcome.code == 0, outcome
    assert shown in outcome.out
