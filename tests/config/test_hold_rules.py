"""A rule has one name, whoever says it."""

from __future__ import annotations

import numpy as np
import pytest

from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.rules import layer_plan
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.hold_rules import RULES, Rule, form_label, rule_name

HEADS, SIZE = 3, 5


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: f"{rule.granularity} {rule.name}")
def test_what_a_rule_makes_is_called_by_its_name(rule: Rule) -> None:
    """From its plan of a layer, as a model's reader sees it; by channels two rules make the same kind of table."""
    tables = np.random.default_rng(2).uniform(0.2, 3, (5, HEADS, SIZE))
    plan = layer_plan(rule, LayerStatistics(LayerGeometry(4, 6, HEADS, SIZE), 0.5, 100, *tables), 0.7)
    seen = rule_name(
        plan.granularity, plan.row_rule, weighted=plan.row_weight is not None, per_channel=plan.threshold.ndim == 2
    )
    assert rule.name in seen.split(" or ")
    assert (seen == rule.name) == (not rule.per_channel)
    assert form_label(plan.form) == f"{rule.granularity} {seen}"


@pytest.mark.parametrize("form", ["", "block", "row", "row relative twice", "element per head"])
def test_another_form_is_shown_as_it_is(form: str) -> None:
    """Metadata of a model are anybody's."""
    assert form_label(form) == form


def test_a_row_rule_of_another_version_is_shown_as_it_is() -> None:
    assert form_label("row cubic weighted") == "row cubic"
    assert rule_name("row", "cubic", weighted=False, per_channel=False) == "cubic"
