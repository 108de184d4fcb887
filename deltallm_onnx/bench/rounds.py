"""Interleaved timing: every round runs each contender once, and contenders are compared within a round only.

A shared machine's clock and memory bandwidth drift over seconds. The quotient of two times taken within one round
hardly sees that; the quotient of two means taken one after the other does.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

#: Rounds that are taken in any case: quartiles of fewer say little.
LEAST_ROUNDS = 5
#: How long ONNX Runtime's idle worker threads keep a core busy before they sleep, with a margin, in seconds. With
#: 3 ms, the workers of ten sessions still slowed each other on two cores.
SPIN_SECONDS = 0.05


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in the unit of the measurements."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value; of a single one all three are that value.

        Raises:
            ValueError: for an empty sequence.
        """
        if not values:
            raise ValueError("A spread needs at least one value.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper)

    def scaled(self, factor: float) -> Spread:
        """In another unit; factor > 0."""
        return Spread(self.median * factor, self.lower * factor, self.upper * factor)

    def to_dict(self, digits: int = 4) -> dict[str, float]:
        """JSON-ready, with so many significant digits."""
        return {name: float(f"{value:.{digits}g}") for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Spread:
        """What `to_dict` wrote."""
        return cls(**{field.name: float(data[field.name]) for field in dataclasses.fields(cls)})


def clock(threads: int) -> Callable[[], float]:
    """The clock for so many threads, in seconds.

    One thread is measured in the CPU time of the calling thread, which other processes hardly change; ONNX Runtime
    with one intra-op thread computes on the caller. Several threads are measured in wall time.
    """
    return time.thread_time if threads == 1 else time.perf_counter


def clock_name(threads: int) -> str:
    """What `clock` measures, in words."""
    return "thread CPU time" if threads == 1 else "wall time"


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    *,
    seconds: float,
    least_rounds: int = LEAST_ROUNDS,
    most_rounds: int | None = None,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Run rounds until the time is over.

    Args:
        contenders: each call does one piece of work and returns what it measured, in seconds.
        seconds: start no further round after so long.
        least_rounds: take so many in any case.
        most_rounds: take no more than so many.
        seed: of the order within the rounds, which changes so that nobody always runs behind the same other.

    Returns:
        What every contender measured, round by round: all lists have the same length.
    """
    order = list(contenders)
    shuffle = random.Random(seed).shuffle  # noqa: S311  # an order, not a secret
    times: dict[str, list[float]] = {name: [] for name in contenders}
    end = time.monotonic() + seconds
    rounds = 0
    while (time.monotonic() < end or rounds < least_rounds) and (most_rounds is None or rounds < most_rounds):
        shuffle(order)
        for name in order:
            times[name].append(contenders[name]())
        rounds += 1
    return times


def quotients(slower: Sequence[float], faster: Sequence[float]) -> Spread:
    """How many times faster: the spread of slower/faster within each round.

    Raises:
        ValueError: where the two were not measured in the same rounds.
    """
    return Spread.of([a / b for a, b in zip(slower, faster, strict=True)])


def fastest(times: Mapping[str, Sequence[float]], names: Iterable[str]) -> str:
    """The one of these contenders with the smallest median time."""
    return min(names, key=lambda name: statistics.median(times[name]))
