"""Ratios are taken within rounds, and their spread is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.bench import Spread, fastest, interleave, quotients

times = st.floats(1e-6, 10.0)


@given(st.lists(times, min_size=2, max_size=40))
def test_spread_is_median_and_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    expected = np.percentile(values, [50, 25, 75])
    assert np.allclose([spread.median, spread.lower, spread.upper], expected, rtol=1e-9)


def test_spread_of_one_value_and_of_none() -> None:
    assert Spread.of([0.25]) == Spread(0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_spread_survives_json_to_four_digits() -> None:
    spread = Spread(12.345678, 0.00123456, 98765.4)
    assert Spread.from_dict(spread.to_dict()) == Spread(12.35, 0.001235, 98770.0)


def test_scaled_changes_the_unit_of_all_three() -> None:
    assert Spread(2.0, 1.0, 3.0).scaled(1e3) == Spread(2000.0, 1000.0, 3000.0)


def test_quotients_are_taken_within_a_round() -> None:
    # The machine became four times slower between the rounds; medians of the times alone would mix the two states.
    peer, own = [10.0, 40.0, 40.0], [5.0, 5.0, 20.0]
    assert quotients(peer, own).median == 2.0
    assert float(np.median(peer) / np.median(own)) == 8.0


def test_quotients_of_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        quotients([1.0, 2.0, 3.0], [1.0, 2.0])


def test_fastest_goes_by_the_median_not_by_the_best_round() -> None:
    measured = {"steady": [3.0, 3.0, 3.0], "lucky once": [1.0, 4.0, 4.0], "not asked": [0.1, 0.1, 0.1]}
    assert fastest(measured, ["steady", "lucky once"]) == "steady"


def test_every_round_runs_each_contender_once_in_changing_order() -> None:
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    names = ["a", "b", "c"]
    measured = interleave({n: (lambda n=n: contender(n)) for n in names}, seconds=0, least_rounds=12, seed=3)
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 12
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 2
    # A time belongs to the round it was taken in.
    for name in names:
        assert [calls[int(at) - 1] for at in measured[name]] == [name] * 12
        assert [int(at - 1) // 3 for at in measured[name]] == list(range(12))


def test_rounds_end_at_the_most_even_where_time_is_left() -> None:
    measured = interleave({"a": lambda: 1.0}, seconds=3600, least_rounds=2, most_rounds=4)
    assert measured == {"a": [1.0] * 4}
