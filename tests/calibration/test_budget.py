from __future__ import annotations

import numpy as np
import pytest
from support.measurements import measurement

from deltallm_onnx.calibration.budget import parse_budget
from deltallm_onnx.errors import DeltaLLMError


@pytest.mark.parametrize(
    ("text", "metric", "limit", "ratio"),
    [
        ("kl=0.02", "kl", 0.02, False),
        (" kl = 2e-2 ", "kl", 0.02, False),
        ("ppl=+1%", "ppl", 0.01, False),
        ("ppl=0.5%", "ppl", 0.005, False),
        ("ppl=+0.01", "ppl", 0.01, False),
        ("delta_sparsity=0.6", "delta_sparsity", 0.6, False),
        ("delta_sparsity=60%", "delta_sparsity", 0.6, False),
        ("kv_bytes=85.5", "kv_bytes", 85.5, False),
        ("kv_bytes=12x", "kv_bytes", 12, True),
    ],
)
def test_forms(text: str, metric: str, limit: float, ratio: bool) -> None:
    budget = parse_budget(text)
    assert (budget.metric, budget.limit, budget.ratio) == (metric, pytest.approx(limit), ratio)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kl",
        "kl=",
        "kl=much",
        "kl=nan",
        "kl=inf",
        "kl=0",
        "kl=-0.1",
        "kl=1%",
        "kl=2x",
        "ppl=100%",
        "ppl=-1%",
        "perplexity=+1%",
        "delta_sparsity=1.2",
        "delta_sparsity=0",
        "kv_bytes=12%",
        "kv_bytes=--3",
        "KL=0.1",
    ],
)
def test_other_forms_are_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(DeltaLLMError, match="budget") as caught:
        parse_budget(text)
    assert repr(text) in str(caught.value)


def test_values_of_a_measurement() -> None:
    # Two windows of 50 tokens, two layers with 3 KV heads.
    dense = measurement(kl=(0, 0), loss=(2.0, 4.0), kv_bytes=2 * 4 * 16)
    found = measurement(kl=(0.01, 0.03), loss=(2.1, 4.1), zeros=30, total=40, kv_bytes=16)
    assert parse_budget("kl=1").value(found, dense) == pytest.approx(0.02)
    assert parse_budget("ppl=1%").value(found, dense) == pytest.approx(np.exp(0.1) - 1)
    assert parse_budget("delta_sparsity=1").value(found, dense) == pytest.approx(0.75)
    assert parse_budget("kv_bytes=1").value(found, dense) == pytest.approx(3 * 16)
    assert parse_budget("kv_bytes=1x").value(found, dense) == pytest.approx(8)


@pytest.mark.parametrize(
    ("text", "kept", "missed"),
    [
        ("kl=0.02", 0.02, 0.0201),
        ("ppl=+1%", -0.5, 0.011),
        ("delta_sparsity=0.6", 0.6, 0.59),
        ("kv_bytes=85", 84, 86),
        ("kv_bytes=12x", 12.5, 11.9),
    ],
)
def test_what_keeps_a_budget(text: str, kept: float, missed: float) -> None:
    budget = parse_budget(text)
    assert budget.met(kept)
    assert not budget.met(missed)
    # Turned so that more held keys make it larger, a budget that spends is kept below, the others above.
    assert (budget.progress(kept) < budget.progress(missed)) == budget.spends


@pytest.mark.parametrize("text", ["kl=0.02", "ppl=+1.00%", "delta_sparsity=0.6", "kv_bytes=85.0", "kv_bytes=12.00x"])
def test_values_are_shown_as_budgets_are_given(text: str) -> None:
    budget = parse_budget(text)
    assert budget.show(budget.limit) == text
