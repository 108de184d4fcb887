"""The allocation against every combination there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from deltallm_onnx.calibration.allocate import Curve, Frontier, Point, envelope
from deltallm_onnx.errors import DeltaLLMError

#: KV heads of each layer: layers differ in their number.
HEADS = {2: 2, 5: 1, 7: 3}


def random_curves(seed: int, *, rules: tuple[str, ...] = ("near", "far"), points: int = 4) -> list[Curve]:
    """Curves per head that rise in gain and, but for noise, in cost."""
    random = np.random.default_rng(seed)
    curves = []
    for (layer, heads), rule in itertools.product(HEADS.items(), rules):
        for head in range(heads):
            gains = np.sort(random.uniform(0, 1, points - 1))
            costs = np.sort(random.exponential(0.01, points - 1)) * random.uniform(0.1, 3)
            costs = np.maximum(0, costs + random.normal(0, 0.001, points - 1))
            rest = [Point((k + 1.0,), float(g), float(c)) for k, (g, c) in enumerate(zip(gains, costs, strict=True))]
            curves.append(Curve(layer, rule, (head,), (Point((0.0,), 0.0, 0.0), *rest)))
    return curves


def combinations(curves: list[Curve]) -> Iterator[tuple[float, float]]:
    """(cost, gain) of every choice of one rule per layer and one point per head."""
    layers = []
    for layer in sorted(HEADS):
        totals = []
        for rule in sorted({curve.rule for curve in curves}):
            own = [curve.points for curve in curves if (curve.layer, curve.rule) == (layer, rule)]
            totals += [(sum(p.cost for p in c), sum(p.gain for p in c)) for c in itertools.product(*own)]
        layers.append(totals)
    for chosen in itertools.product(*layers):
        yield sum(c for c, _ in chosen), sum(g for _, g in chosen)


@pytest.mark.parametrize("seed", range(6))
def test_no_combination_is_better_for_any_multiplier(seed: int) -> None:
    curves = random_curves(seed, points=3)
    frontier = Frontier(curves)
    every = np.array(list(combinations(curves)))
    found = [frontier.at(cost) for cost in np.linspace(0, frontier.highest, 400)]
    for multiplier in np.geomspace(1, 1e4, 25):
        best = (every[:, 1] - multiplier * every[:, 0]).max()
        reached = max(allocation.gain - multiplier * allocation.cost for allocation in [*found, frontier.nothing])
        # The walk is sampled, and a vertex lies between two samples by at most their distance.
        assert reached <= best + 1e-12
        assert reached >= best - multiplier * frontier.highest / 399 - 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_at_its_vertices_the_frontier_is_the_best_there_is_for_the_cost(seed: int) -> None:
    curves = random_curves(seed, points=3)
    frontier = Frontier(curves)
    every = np.array(list(combinations(curves)))
    for cost in frontier.vertices:
        allocation = frontier.at(cost)
        affordable = every[every[:, 0] <= cost + 1e-12]
        assert allocation.cost == pytest.approx(cost, abs=1e-12)
        assert allocation.gain == pytest.approx(affordable[:, 1].max(), abs=1e-12)


def test_what_it_says_is_what_the_curves_say() -> None:
    curves = random_curves(11)
    frontier = Frontier(curves)
    table = {
        (curve.layer, curve.rule, curve.heads[0], point.alphas[0]): point for curve in curves for point in curve.points
    }
    for cost in frontier.vertices:
        allocation = frontier.at(cost)
        points = [
            table[layer, choice.rule, head, alpha]
            for layer, choice in allocation.layers.items()
            for head, alpha in enumerate(choice.alphas)
        ]
        assert {layer: len(choice.alphas) for layer, choice in allocation.layers.items()} == HEADS
        assert allocation.gain == pytest.approx(sum(point.gain for point in points))
        assert allocation.cost == pytest.approx(sum(point.cost for point in points))


def test_gain_and_cost_rise_with_the_budget_and_never_exceed_it() -> None:
    frontier = Frontier(random_curves(3))
    costs = np.linspace(0, 1.2 * frontier.highest, 200)
    found = [frontier.at(cost) for cost in costs]
    assert all(a.gain <= b.gain + 1e-12 for a, b in itertools.pairwise(found))
    assert all(allocation.cost <= cost + 1e-12 for allocation, cost in zip(found, costs, strict=True))
    assert found[-1].cost == pytest.approx(frontier.highest)
    wanted = found[120].gain
    assert frontier.at(frontier.cost_of(wanted)).gain == pytest.approx(wanted, abs=1e-9)


def test_between_two_points_of_a_rule_the_scales_are_mixed() -> None:
    curve = Curve(0, "near", (0, 1), (Point((0.0, 0.0), 0.0, 0.0), Point((2.0, 4.0), 0.5, 0.1)))
    allocation = Frontier([curve]).at(0.025)
    assert allocation.layers[0].alphas == pytest.approx((0.5, 1.0))
    assert (allocation.gain, allocation.cost) == pytest.approx((0.125, 0.025))
    longer = Curve(0, "near", (0, 1), (*curve.points, Point((32.0, 4.0), 0.6, 0.2)))
    assert Frontier([longer]).at(0.175).layers[0].alphas == pytest.approx((16.0, 4.0))  # 2·(32/2)^¾


def test_a_change_of_rule_is_not_taken_in_part() -> None:
    near = Curve(0, "near", (0,), (Point((0.0,), 0.0, 0.0), Point((1.0,), 0.5, 0.1)))
    far = Curve(0, "far", (0,), (Point((0.0,), 0.0, 0.0), Point((3.0,), 0.6, 0.2)))
    frontier = Frontier([near, far])
    assert frontier.at(0.19).layers[0].rule == "near"
    assert frontier.at(0.19).cost == pytest.approx(0.1)
    assert frontier.at(0.2).layers[0].rule == "far"


def test_what_costs_nothing_is_always_taken() -> None:
    curve = Curve(0, "near", (0,), (Point((0.0,), 0.0, 0.0), Point((1.0,), 0.4, 0.0), Point((2.0,), 0.5, 0.3)))
    assert Frontier([curve]).at(0.0).layers[0].alphas == (1.0,)
    assert Frontier([curve]).nothing.layers[0].alphas == (0.0,)


def test_an_envelope_leaves_out_what_lies_below_it() -> None:
    points = [(0.0, 0.0, "a"), (1.0, 1.0, "b"), (2.0, 3.0, "c"), (3.0, 2.9, "d"), (4.0, 3.5, "e"), (4.0, 3.2, "f")]
    assert [name for _, _, name in envelope(points)] == ["a", "c", "e"]


@pytest.mark.parametrize(
    ("curves", "sentence"),
    [
        ([], "no curves"),
        ([Curve(4, "near", (1,), (Point((0.0,), 0.0, 0.0),))], "layer 4 cover the KV heads"),
        (
            [
                Curve(4, "near", (0, 1), (Point((0.0, 0.0), 0.0, 0.0),)),
                Curve(4, "far", (0,), (Point((0.0,), 0.0, 0.0),)),
            ],
            "'far' in layer 4",
        ),
    ],
)
def test_curves_that_do_not_fit_together_are_refused(curves: list[Curve], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        Frontier(curves)
