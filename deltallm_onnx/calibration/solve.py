"""Close on a budget: find the setting of a knob at which a measured number reaches its limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

#: A bracket that is so narrow, of its knob, holds a jump: no trial inside it would help.
NARROW = 0.002


@dataclasses.dataclass(frozen=True)
class Trial:
    """One measured setting.

    Attributes:
        knob: what was set, ≥ 0.
        value: what was measured: a number that rises with the knob, but for noise.
    """

    knob: float
    value: float


def solve(
    measure: Callable[[float], float],
    target: float,
    *,
    low: Trial,
    high: Trial,
    start: float,
    below: bool,
    tolerance: float,
    max_trials: int,
) -> Trial:
    """Find where a rising function reaches `target`, from below or from above.

    False position between the nearest two trials on both sides, on logarithms where all numbers are positive, as
    divergences grow like powers; every third step halves the bracket instead, so that a jump or a flat end cannot stall
    it.

    Args:
        measure: the function; each call is dear.
        target: the value to reach, between those of `low` and `high`.
        low: a trial with value ≤ target.
        high: a trial with value ≥ target.
        start: first guess.
        below: True seeks the largest value ≤ target; False the smallest ≥ target.
        tolerance: stop when a trial on the right side is this near to the target.
        max_trials: calls at most.

    Returns:
        The best trial on the right side of the target, `low` or `high` included.
    """
    best = low if below else high
    # Aiming a little to the right side of the target, half of the near misses still keep it.
    aim = target - tolerance / 2 if below else target + tolerance / 2
    for count in range(max_trials):
        if abs(best.value - target) <= tolerance or high.knob - low.knob <= NARROW * high.knob:
            break
        knob = start if count == 0 and low.knob < start < high.knob else _between(low, high, aim, count)
        if not low.knob < knob < high.knob:
            break
        trial = Trial(knob, measure(knob))
        kept = trial.value <= target if below else trial.value >= target
        if kept and abs(trial.value - target) < abs(best.value - target):
            best = trial
        if trial.value <= target:
            low = trial
        else:
            high = trial
    return best


def _between(low: Trial, high: Trial, aim: float, count: int) -> float:
    """A knob inside the bracket, never nearer to an end than a twentieth of the way."""
    knobs, values = (low.knob, high.knob), (low.value, aim, high.value)
    logarithmic = min(*knobs, *values) > 0
    if logarithmic:
        values = (math.log(values[0]), math.log(values[1]), math.log(values[2]))
        knobs = (math.log(knobs[0]), math.log(knobs[1]))
    rise = values[2] - values[0]
    share = 0.5 if count % 3 == 2 or rise <= 0 else (values[1] - values[0]) / rise
    knob = knobs[0] + min(max(share, 0.05), 0.95) * (knobs[1] - knobs[0])
    return math.exp(knob) if logarithmic else knob
