from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.report_models import SINKS, WINDOW, ReportModels, random_layer
from support.tiny_decoder import VOCABULARY

from deltallm_onnx.reference import hold
from deltallm_onnx.report.held_keys import held_keys
from deltallm_onnx.report.layer_inputs import layer_inputs
from deltallm_onnx.report.run_lengths import run_lengths, run_section


@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 4))))
def test_lengths_are_those_counted_one_by_one(repeats: np.ndarray) -> None:
    expected = []
    for head, channel in itertools.product(range(repeats.shape[0]), range(repeats.shape[2])):
        length = 1
        for t in range(1, repeats.shape[1]):
            if repeats[head, t, channel]:
                length += 1
            else:
                expected.append(length)
                length = 1
        expected.append(length)
    assert run_lengths(repeats).tolist() == expected


def test_the_operator_counts_as_many_repeats(models: ReportModels) -> None:
    """Counts of the call that read the sample: tokens between sinks and window."""
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, 61)
    for path in (models.element, models.int8):
        for layer in layer_inputs(path, tokens):
            coded = held_keys(layer).repeats[:, SINKS : len(tokens) - WINDOW]
            np.testing.assert_array_equal(coded.sum(axis=(1, 2)), layer.statistics[:, 1])
            assert 0 < coded.mean() < 1


def test_tokens_beyond_the_window_are_coded_too() -> None:
    """The last ones of the text, as if the window had passed them."""
    layer = random_layer(13, delta_window=20)
    held = held_keys(layer)
    expected = hold(layer.key[None], layer.threshold, sinks=2)[0]
    np.testing.assert_array_equal(held.held, expected)
    assert held.repeats[:, -1].any()
    assert not held.repeats[:, :2].any()


@pytest.mark.parametrize("granularity", ["element", "row"])
def test_shares_sum_to_one_and_means_to_tokens(granularity: str) -> None:
    layer = random_layer(17, granularity=granularity)
    held = held_keys(layer)
    (told,) = run_section([layer], [held])["layers"]
    sequences = [
        held.held[head, 2:, channel : channel + 1] if granularity == "element" else held.held[head, 2:]
        for head in range(2)
        for channel in range(4 if granularity == "element" else 1)
    ]
    lengths = [len(list(run)) for rows in sequences for _, run in itertools.groupby(rows.tolist())]
    assert told["runs"] == len(lengths)
    assert told["mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert told["longest"] == max(lengths)
    assert sum(told["share_by_bin"]) == pytest.approx(1)
    in_threes = sum(n for n in lengths if n in (3, 4)) / sum(lengths)
    assert told["share_by_bin"][2] == pytest.approx(in_threes)
