"""The search on a model whose measurements are a formula: divergences of heads do not add, there is a floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.formula_meter import FormulaMeter

from deltallm_onnx.calibration.allocate import Frontier
from deltallm_onnx.calibration.budget import parse_budget
from deltallm_onnx.calibration.effort import EFFORTS, sample
from deltallm_onnx.calibration.search import Fit, Search, UnreachableError, best_fit, most_plans
from deltallm_onnx.calibration.sensitivity import Maker, measure_curves
from deltallm_onnx.config import DeltaConfig

ROWS = DeltaConfig(window=8, cache_format="int8")


def prepared(
    meter: FormulaMeter, text: str, config: DeltaConfig = ROWS, confidence: float = 0.5, **changes: float
) -> tuple[Search, Frontier]:
    maker = Maker(meter.layers, meter.rules)
    sampling = sample(
        EFFORTS["full"], granularity="row", rules=tuple(meter.rules), layers=len(meter.layers), heads=5, windows=2
    )
    curves = measure_curves(meter, maker, config, sampling)
    for name, value in changes.items():
        setattr(meter, name, value)
    return Search(meter, maker, parse_budget(text), 12, confidence), Frontier(curves)


def fitted(meter: FormulaMeter, text: str, **changes: float) -> Fit:
    search, frontier = prepared(meter, text, **changes)
    return search.fit(ROWS, frontier)


@pytest.mark.parametrize("interaction", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [0.003, 0.01, 0.03])
def test_a_divergence_is_kept_and_used_up_though_single_ones_do_not_add(interaction: float, limit: float) -> None:
    fit = fitted(FormulaMeter(), f"kl={limit}", interaction=interaction)
    assert 0.95 * limit <= fit.measured.kl <= limit


def test_a_perplexity_is_kept_and_used_up() -> None:
    fit = fitted(FormulaMeter(), "ppl=+1%")
    assert 0.0095 <= fit.value <= 0.01
    assert fit.value == pytest.approx(math.expm1(fit.measured.kl), rel=1e-6)  # the formula's loss


@pytest.mark.parametrize("text", ["kl=0.01", "ppl=+1%"])
@pytest.mark.parametrize(("confidence", "quantile"), [(0.5, 0.0), (0.8, 1.3763819), (0.95, 6.3137515)])
def test_a_confidence_keeps_the_upper_limit_within_the_budget(text: str, confidence: float, quantile: float) -> None:
    """Two windows of kl·(1 ± spread): a standard error of spread·kl, and Student's quantile of one degree."""
    search, frontier = prepared(FormulaMeter(), text, confidence=confidence, spread=0.1)
    fit = search.fit(ROWS, frontier)
    limit = fit.measured.kl * (1 + 0.1 * quantile)
    spent = limit if text.startswith("kl") else math.expm1(limit)
    assert fit.limit == pytest.approx(spent, rel=1e-6)
    assert 0.0095 <= fit.limit <= 0.01
    assert [tried.limit for tried in search.tried if tried.value == fit.value] == [fit.limit]


def test_a_floor_below_the_budget_is_refused_where_its_upper_limit_is_above() -> None:
    search, frontier = prepared(FormulaMeter(), "kl=0.01", confidence=0.8, spread=0.2, floor=0.0095)
    with pytest.raises(UnreachableError, match=r"best reachable is kl=0\.0121\d on .* with a confidence of 80%"):
        search.fit(ROWS, frontier)


@pytest.mark.parametrize("share", [-0.1, 0.0, 0.2])
def test_a_perplexity_that_hardly_moves_does_not_pay_for_a_large_divergence(share: float) -> None:
    fit = fitted(FormulaMeter(), "ppl=+1%", loss_share=share)
    assert 0.9 * 3 * math.log1p(0.01) <= fit.measured.kl <= 3 * math.log1p(0.01)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_a_share_is_reached_and_not_far_exceeded(share: float) -> None:
    fit = fitted(FormulaMeter(), f"delta_sparsity={share}")
    assert share <= fit.value <= share + 0.02


@pytest.mark.parametrize(("text", "most", "least"), [("kv_bytes=60", 60, 57), ("kv_bytes=10x", 32, 31)])
def test_bytes_are_reached_and_not_far_exceeded(text: str, most: float, least: float) -> None:
    fit = fitted(FormulaMeter(), text)
    assert least <= fit.measured.counters.kv_bytes_per_token <= most


def test_heads_that_bear_more_hold_more_and_each_layer_has_its_better_rule() -> None:
    meter = FormulaMeter()
    fit = fitted(meter, "kl=0.01")
    held = meter.held_shares(fit.plan)
    sensitive, robust = held[0][0], held[0][1]
    assert robust > sensitive + 0.2
    assert {layer: choice.rule for layer, choice in fit.allocation.layers.items()} == meter.better_rules


def test_the_allocation_beats_one_scale_for_all_at_the_same_divergence() -> None:
    meter = FormulaMeter()
    fit = fitted(meter, "kl=0.01")
    maker = Maker(meter.layers, meter.rules)
    best = 0.0
    for rule in meter.rules:
        for scale in np.linspace(0.1, 4, 200):
            measured = meter.measure("search", ROWS, maker.everywhere(rule, float(scale)))
            if measured.kl <= 0.01:
                best = max(best, measured.counters.delta_sparsity)
    assert fit.measured.counters.delta_sparsity > best + 0.03


@pytest.mark.parametrize(
    ("text", "changes", "best"),
    [
        ("kl=0.001", {"floor": 0.002}, 0.002),
        ("delta_sparsity=0.99", {"most": 0.9}, 0.9),
        ("kv_bytes=5", {}, 8),
        ("kv_bytes=100x", {}, 40),
    ],
)
def test_an_impossible_budget_is_refused_with_the_best_reachable(
    text: str, changes: dict[str, float], best: float
) -> None:
    search, frontier = prepared(FormulaMeter(), text, **changes)
    with pytest.raises(UnreachableError, match="the best reachable is") as caught:
        search.fit(ROWS, frontier)

    assert caught.value.best == pytest.approx(best, rel=0.02)
    assert f"The budget {text} cannot be met" in str(caught.value)


def test_bytes_that_no_held_key_frees_are_refused_with_what_would() -> None:
    config = DeltaConfig(window=8, cache_format="float32")
    search, frontier = prepared(FormulaMeter(merges=False), "kv_bytes=60", config)
    with pytest.raises(UnreachableError, match="--cache-format int8 or int4"):
        search.fit(config, frontier)


def test_a_budget_that_holding_nothing_keeps_already_takes_no_more_than_needed() -> None:
    fit = fitted(FormulaMeter(), "kv_bytes=2x")
    assert fit.measured.counters.delta_sparsity == 0


def test_a_budget_larger_than_all_costs_takes_everything() -> None:
    fit = fitted(FormulaMeter(), "kl=50")
    assert fit.measured.counters.delta_sparsity > 0.97


def test_of_several_plans_the_one_with_fewer_bytes_is_taken_or_the_one_that_costs_less() -> None:
    small, large = fitted(FormulaMeter(), "kl=0.02"), fitted(FormulaMeter(), "kl=0.005")
    assert best_fit([large, small], parse_budget("kl=0.02")) is small
    assert best_fit([small, large], parse_budget("delta_sparsity=0.2")) is large


def test_no_more_plans_are_measured_than_the_bill_says() -> None:
    for text in ("kl=0.01", "delta_sparsity=0.5", "ppl=+1%"):
        search, frontier = prepared(FormulaMeter(), text, interaction=3.0)
        search.fit(ROWS, frontier)
        assert len(search.tried) <= most_plans(12)
