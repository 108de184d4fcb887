"""How much is measured: the number of windows read is fixed before anything starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from deltallm_onnx.config import Granularity
from deltallm_onnx.errors import DeltaLLMError

#: Where curves have their points, in a rule's own unit (`sensitivity.unit`): from a fifth held to all, as many
#: heads are best held for good.
SCALES: dict[Granularity, tuple[float, ...]] = {
    "row": (0.85, 1.0, 1.2, 1.45, 1.8, 2.5, 8.0),
    "element": (0.5, 0.8, 1.2, 1.7, 2.4, 4.0, 20.0),
}
#: Of these scales, the ones of a coarse curve.
_COARSE = slice(None, None, 2)
#: How curves are measured, the dearest first: every head and scale on its own, by the divergence; or by the errors of
#: attention outputs, one reading for all heads, which are turned into divergences by one reading per head or per layer.
Method = Literal["alone", "errors by head", "errors by layer"]
#: Rules by how well they did on the models tried; the first ones are tried.
RULE_ORDER: dict[Granularity, tuple[str, ...]] = {
    "row": ("query", "relative", "query-relative", "absolute"),
    "element": ("query", "uniform", "sigma"),
}


@dataclasses.dataclass(frozen=True)
class Effort:
    """What a calibration reads.

    Attributes:
        windows: of all parts of the text together, at most.
        sensitivity_windows: of the sensitivity part, per point of a curve, at most.
        rules: rules tried, at most.
        method: how curves are measured; a cheaper one where they would read too much.
        reads: windows that the curves may read, at most: above that come cheaper methods, fewer windows, points, rules.
        trials: plans measured to close on the budget, at most.
    """

    windows: int
    sensitivity_windows: int
    rules: int
    method: Method
    reads: int
    trials: int


EFFORTS = {
    "full": Effort(64, 4, 2, "alone", reads=1000, trials=12),
    "short": Effort(24, 2, 2, "errors by head", reads=100, trials=6),
}


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the curves are measured.

    Attributes:
        rules: names.
        method: see Method.
        scales: where a curve has its points, in the rule's own unit.
        windows: read per point.
        reads: windows that all curves read together.
    """

    rules: tuple[str, ...]
    method: Method
    scales: tuple[float, ...]
    windows: int
    reads: int


def find_effort(name: str) -> Effort:
    """The effort of this name.

    Raises:
        DeltaLLMError: where there is none.
    """
    if name not in EFFORTS:
        raise DeltaLLMError(f"There is no effort {name!r}: choose one of {', '.join(EFFORTS)}.")
    return EFFORTS[name]


def sample(
    effort: Effort,
    *,
    granularity: Granularity,
    rules: Sequence[str] | None,
    layers: int,
    heads: int,
    windows: int,
) -> Sampling:
    """The finest sampling of the curves that stays within `effort.reads`; the coarsest one, where none does.

    Args:
        effort: the bounds.
        granularity: of the rules.
        rules: to try; None takes the first ones of RULE_ORDER.
        layers: attention layers.
        heads: KV heads of all layers.
        windows: there are in the sensitivity part.
    """
    tried = tuple(rules or RULE_ORDER[granularity][: effort.rules])
    most = min(effort.sensitivity_windows, windows)
    choices = [Sampling(tried, effort.method, SCALES[granularity], most, 0)]
    changes: tuple[dict[str, Any], ...] = (
        {"method": "errors by head"},
        {"windows": 1},
        {"method": "errors by layer"},
        {"scales": SCALES[granularity][_COARSE]},
        {"rules": tried[:1]},
    )
    for change in changes:
        choices.append(dataclasses.replace(choices[-1], **change))
    counted = choices[0]
    for choice in choices:
        counted = dataclasses.replace(choice, reads=_reads(choice, layers, heads))
        if counted.reads <= effort.reads:
            break
    return counted


def _reads(choice: Sampling, layers: int, heads: int) -> int:
    scales, rules = len(choice.scales), len(choice.rules)
    if choice.method == "alone":
        return (heads * scales + 1) * rules * choice.windows
    anchors = heads if choice.method == "errors by head" else layers
    return ((scales + 1) * rules + anchors + 1) * choice.windows
