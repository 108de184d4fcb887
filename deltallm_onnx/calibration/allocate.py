"""Spend a divergence where it buys most: a Lagrangian over measured curves, nothing but arithmetic.

Every KV head has curves of what is held (gain) against the divergence (cost) that this costs alone. For a multiplier λ
the best plan maximises Σ gain − λ·Σ cost. That falls apart into layers: in each, the best rule (all heads of a layer
share the node's attributes), and for each head the best point of that rule's curve. All λ together give the upper
concave envelopes of the curves: walking along their segments, steepest first, visits the optimum of every λ in turn
(Everett 1963; Shoham and Gersho 1988 use it for bits). Between the optima of two multipliers the last segment is taken
in part.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class Point:
    """One setting of one curve.

    Attributes:
        alphas: scale of the rule's threshold for each head of the curve, ≥ 0; 0 holds (nearly) nothing.
        gain: what is held, in any unit that adds up over heads.
        cost: divergence in nats per token.
    """

    alphas: tuple[float, ...]
    gain: float
    cost: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """What a rule gives and costs in some heads of one layer, all else being exact.

    Attributes:
        layer: its number.
        rule: as in `calibration.rules`.
        heads: KV heads that are set together: one, or all of a layer that is measured as a whole.
        points: in ascending order of the scales.
    """

    layer: int
    rule: str
    heads: tuple[int, ...]
    points: tuple[Point, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "layer": self.layer,
            "rule": self.rule,
            "heads": list(self.heads),
            "points": [{"alphas": list(point.alphas), "gain": point.gain, "cost": point.cost} for point in self.points],
        }


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """A rule, and the scale of each KV head."""

    rule: str
    alphas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A choice for every layer, and what its curves add up to.

    Attributes:
        layers: by layer number.
        gain: sum of the curves' gains.
        cost: sum of the curves' costs; measured together, divergences only nearly add.
    """

    layers: Mapping[int, LayerChoice]
    gain: float
    cost: float


@dataclasses.dataclass(frozen=True)
class _Vertex:
    """A point of a layer's envelope: a choice, its gain and its cost."""

    gain: float
    cost: float
    choice: LayerChoice


class Frontier:
    """The best allocations of all multipliers, in ascending order of cost.

    Args:
        curves: for each layer and rule, curves that cover each KV head once.

    Raises:
        DeltaLLMError: without curves, and where a rule's curves do not cover the heads of a layer once each.
    """

    def __init__(self, curves: Sequence[Curve]) -> None:
        if not curves:
            raise DeltaLLMError("There are no curves to choose thresholds from: measure at least one rule.")
        by_layer: dict[int, dict[str, list[Curve]]] = {}
        for curve in curves:
            by_layer.setdefault(curve.layer, {}).setdefault(curve.rule, []).append(curve)
        self._layers = {layer: _layer_envelope(layer, rules) for layer, rules in sorted(by_layer.items())}
        segments = [
            ((after.gain - before.gain) / (after.cost - before.cost), layer, number)
            for layer, vertices in self._layers.items()
            for number, (before, after) in enumerate(itertools.pairwise(vertices))
        ]
        # Of equal slopes the earlier layer goes first, and within a layer the earlier segment.
        segments.sort(key=lambda segment: (-segment[0], segment[1], segment[2]))
        self._steps = [layer for _, layer, _ in segments]
        first = sum(vertices[0].cost for vertices in self._layers.values())
        lengths = [
            self._layers[layer][number + 1].cost - self._layers[layer][number].cost for _, layer, number in segments
        ]
        self._costs = list(itertools.accumulate(lengths, initial=first))

    @property
    def nothing(self) -> Allocation:
        """All scales 0, with the rules of the cheapest allocation."""
        cheapest = self.at(self.lowest)
        zeros = {
            layer: LayerChoice(choice.rule, (0.0,) * len(choice.alphas)) for layer, choice in cheapest.layers.items()
        }
        return Allocation(zeros, 0.0, 0.0)

    @property
    def vertices(self) -> tuple[float, ...]:
        """Costs at which the allocation is the best of all combinations; between them the last step is mixed."""
        return tuple(self._costs)

    @property
    def lowest(self) -> float:
        """Cost of the allocation that takes only what is free."""
        return self._costs[0]

    @property
    def highest(self) -> float:
        """Cost of the allocation that takes everything."""
        return self._costs[-1]

    def cost_of(self, gain: float) -> float:
        """The cost at which the allocation reaches this gain; `highest` where none does."""
        low, high = self.lowest, self.highest
        for _ in range(60):
            middle = (low + high) / 2
            if self.at(middle).gain < gain:
                low = middle
            else:
                high = middle
        return high

    def at(self, cost: float) -> Allocation:
        """The allocation of largest gain that the curves say costs this much.

        Args:
            cost: sum of divergences; below `lowest` and above `highest` these are taken. Where the segment reached
                changes a layer's rule, it is not taken in part: the cost is then a little lower.
        """
        taken = bisect.bisect_right(self._costs, cost) - 1 if cost > self.lowest else 0
        at = dict.fromkeys(self._layers, 0)
        for layer in self._steps[:taken]:
            at[layer] += 1
        vertices = {layer: self._layers[layer][number] for layer, number in at.items()}
        if taken < len(self._steps) and cost > self._costs[taken]:
            layer = self._steps[taken]
            share = (cost - self._costs[taken]) / (self._costs[taken + 1] - self._costs[taken])
            vertices[layer] = _between(vertices[layer], self._layers[layer][at[layer] + 1], share)
        return Allocation(
            {layer: vertex.choice for layer, vertex in vertices.items()},
            sum(vertex.gain for vertex in vertices.values()),
            sum(vertex.cost for vertex in vertices.values()),
        )


def envelope(points: Iterable[tuple[float, float, Any]]) -> list[tuple[float, float, Any]]:
    """The upper concave envelope of (cost, gain, anything), from the cheapest point to the one of largest gain.

    Costs and gains rise strictly along it and slopes fall. Of equal points the first one given stays.
    """
    hull: list[tuple[float, float, Any]] = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], point) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        if hull and point[0] == hull[-1][0]:
            hull[-1] = point
        else:
            hull.append(point)
    return hull


def _slope(before: tuple[float, float, Any], after: tuple[float, float, Any]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0]) if after[0] > before[0] else float("inf")


def _layer_envelope(layer: int, rules: Mapping[str, Sequence[Curve]]) -> list[_Vertex]:
    """The envelope over all rules of a layer; within a rule, its heads go by their slopes too."""
    heads = sorted(head for curve in next(iter(rules.values())) for head in curve.heads)
    if heads != list(range(len(heads))):
        raise DeltaLLMError(f"The curves of layer {layer} cover the KV heads {heads}: each must be there once.")
    points: list[tuple[float, float, LayerChoice]] = []
    for rule, curves in rules.items():
        if sorted(head for curve in curves for head in curve.heads) != heads:
            raise DeltaLLMError(
                f"The curves of rule {rule!r} in layer {layer} cover other KV heads than another rule's."
            )
        points += _rule_points(rule, curves, len(heads))
    return [_Vertex(gain, cost, choice) for cost, gain, choice in envelope(points)]


def _rule_points(rule: str, curves: Sequence[Curve], heads: int) -> list[tuple[float, float, LayerChoice]]:
    """(cost, gain, choice) of one rule for each multiplier."""
    hulls = [envelope((point.cost, point.gain, point.alphas) for point in curve.points) for curve in curves]
    segments = sorted(
        (-_slope(before, after), number)
        for number, hull in enumerate(hulls)
        for before, after in itertools.pairwise(hull)
    )
    at = [0] * len(hulls)

    def point() -> tuple[float, float, LayerChoice]:
        alphas = [0.0] * heads
        chosen = [hull[number] for hull, number in zip(hulls, at, strict=True)]
        for curve, (_, _, scales) in zip(curves, chosen, strict=True):
            for head, scale in zip(curve.heads, scales, strict=True):
                alphas[head] = scale
        return sum(c[0] for c in chosen), sum(c[1] for c in chosen), LayerChoice(rule, tuple(alphas))

    found = [point()]
    for _, number in segments:
        at[number] += 1
        found.append(point())
    return found


def _between(before: _Vertex, after: _Vertex, share: float) -> _Vertex:
    """A choice between two neighbours of an envelope; `before` where their rules differ."""
    if before.choice.rule != after.choice.rule:
        return before
    alphas = tuple(_mixed(a, b, share) for a, b in zip(before.choice.alphas, after.choice.alphas, strict=True))
    gain = before.gain + share * (after.gain - before.gain)
    cost = before.cost + share * (after.cost - before.cost)
    return _Vertex(gain, cost, LayerChoice(before.choice.rule, alphas))


def _mixed(before: float, after: float, share: float) -> float:
    """A scale between two, in proportion to their logarithms where both have one: the last one may be very large."""
    if before > 0 and after > 0:
        return float(before ** (1 - share) * after**share)
    return before + share * (after - before)
