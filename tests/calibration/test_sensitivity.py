"""Curves and units, on a model whose measurements are a formula."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.formula_meter import SENSITIVITY, FormulaMeter

from deltallm_onnx.calibration.allocate import Curve, Point
from deltallm_onnx.calibration.effort import Method, Sampling
from deltallm_onnx.calibration.rules import RULES
from deltallm_onnx.calibration.sensitivity import Maker, measure_curves, unit
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.reference import hold

SCALES = (0.5, 1.0, 3.0)
CONFIG = DeltaConfig(window=8, cache_format="int8")


def curves_of(meter: FormulaMeter, method: Method, rules: tuple[str, ...] | None = None) -> list[Curve]:
    sampling = Sampling(rules or tuple(meter.rules), method, SCALES, 2, 0)
    return measure_curves(meter, Maker(meter.layers, meter.rules), CONFIG, sampling)


def test_a_curve_is_what_one_head_holds_and_costs_alone() -> None:
    meter = FormulaMeter()
    meter.floor = 0.004  # what coding alone costs is taken off
    curves = curves_of(meter, "alone")
    assert len(curves) == 5 * len(meter.rules)
    for curve in curves:
        layer = next(entry for entry in meter.layers if entry.geometry.layer == curve.layer)
        worse = 1 if meter.better_rules[curve.layer] == curve.rule else 3
        (head,) = curve.heads
        assert curve.points[0] == Point((0.0,), 0.0, 0.0)
        for point, scale in zip(curve.points[1:], SCALES, strict=True):
            share = -np.expm1(-(scale**2))
            assert point.alphas[0] == pytest.approx(scale * unit(meter.rules[curve.rule], layer)[head])
            assert point.gain == pytest.approx(share / 5, abs=2e-4)  # of five heads; the counts are whole rows
            assert point.cost == pytest.approx(worse * SENSITIVITY[curve.layer][head] * share**4, rel=1e-5)


def test_where_errors_are_in_proportion_they_give_the_same_curves() -> None:
    """The rules' errors differ, their largest do not: each head has one price for all rules."""
    meter = FormulaMeter()
    rules = ("relative",)
    for one, other in zip(curves_of(meter, "alone", rules), curves_of(meter, "errors by head", rules), strict=True):
        assert (one.layer, one.rule, one.heads) == (other.layer, other.rule, other.heads)
        for a, b in zip(one.points, other.points, strict=True):
            assert (a.alphas, a.gain) == (b.alphas, b.gain)
            assert a.cost == pytest.approx(b.cost, rel=1e-6, abs=1e-15)


def test_a_price_per_layer_gives_the_layer_its_cost_and_the_heads_their_shares_of_the_error() -> None:
    meter = FormulaMeter()
    curves = curves_of(meter, "errors by layer", ("relative",))
    for layer in meter.layers:
        number = layer.geometry.layer
        worse = 1 if meter.better_rules[number] == "relative" else 3
        costs = worse * np.array(SENSITIVITY[number]) * np.expm1(-(SCALES[-1] ** 2)) ** 4
        errors = costs * (7.0 + np.arange(len(costs)) + number)
        found = [curve.points[-1].cost for curve in curves if curve.layer == number]
        assert found == pytest.approx(costs.sum() * errors / errors.sum())


def test_of_scales_that_hold_the_same_the_largest_is_kept() -> None:
    meter = FormulaMeter()
    sampling = Sampling(("relative",), "alone", (1.0, 6.0, 7.0, 50.0), 2, 0)  # from 6 on all 1000 rows are held
    for curve in measure_curves(meter, Maker(meter.layers, meter.rules), CONFIG, sampling):
        units = unit(meter.rules["relative"], next(x for x in meter.layers if x.geometry.layer == curve.layer))
        assert [point.alphas[0] / units[curve.heads[0]] for point in curve.points] == pytest.approx([0, 1, 50])


def test_other_layers_hold_nothing_meanwhile() -> None:
    meter = FormulaMeter()
    plan = Maker(meter.layers, meter.rules, v_skip=0.25).alone(3, "absolute", np.array([1.0, 0.0, 2.0]))
    assert [layer.threshold.tolist() for layer in plan.layers] == [[0.0, 0.0], [1.0, 0.0, 2.0]]
    assert [layer.v_skip for layer in plan.layers] == [0.25, 0.25]


@pytest.mark.parametrize("key", RULES, ids="-".join)
def test_in_its_own_unit_every_rule_holds_a_fair_share_at_1_whatever_the_size_of_the_keys(
    key: tuple[str, str],
) -> None:
    random = np.random.default_rng(12)
    D, tokens = 32, 600
    for size in (0.01, 1.0, 300.0):
        steps = random.normal(size=(tokens, D)) * random.uniform(0.2, 2, D) * size
        keys = (0.8 * np.cumsum(steps, axis=0) % (9 * size) + steps).astype(np.float32)
        weight = random.uniform(0.1, 3, (1, D))
        meter = FormulaMeter()
        statistics = dataclasses.replace(
            meter.layers[0],
            geometry=dataclasses.replace(meter.layers[0].geometry, num_heads=2, kv_num_heads=1, head_size=D),
            query_rms=weight,
            key_rms=np.sqrt(np.square(keys.astype(float)).mean(axis=0))[None],
            key_std=keys.astype(float).std(axis=0)[None],
            change_rms=np.sqrt(np.square(np.diff(keys.astype(float), axis=0)).mean(axis=0))[None],
        )
        held = []
        for scale in (0.0, 1.0, 20.0):
            plan = Maker([statistics], {"it": RULES[key]}).everywhere("it", scale).layers[0]
            read = hold(
                keys[None, None],
                plan.threshold,
                granularity=plan.granularity,
                row_rule=plan.row_rule,
                row_weight=plan.row_weight,
            )[0, 0]
            same = read[1:] == read[:-1]
            held.append(same.mean() if plan.granularity == "element" else same.all(axis=1).mean())
        assert held[0] < 0.02
        assert 0.1 < held[1] < 0.95
        assert held[2] > 0.97


def test_a_head_whose_keys_never_change_has_a_unit_too() -> None:
    layer = FormulaMeter().layers[0]
    still = dataclasses.replace(layer, change_rms=np.zeros_like(layer.change_rms), key_std=np.zeros_like(layer.key_std))
    for rule in RULES.values():
        assert np.array_equal(unit(rule, still), np.ones(2))
