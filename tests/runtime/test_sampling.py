from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import Sampler

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler()(np.array([1, 7, 3, 7], np.float32)) == 1


def test_the_same_seed_draws_the_same_tokens() -> None:
    one, other, third = (Sampler(temperature=1.0, seed=seed) for seed in (5, 5, 6))
    drawn = [[sampler(LOGITS) for _ in range(40)] for sampler in (one, other, third)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_draws_follow_the_softmax() -> None:
    sampler = Sampler(temperature=1.0, seed=1)
    counts = np.bincount([sampler(LOGITS) for _ in range(4000)], minlength=5) / 4000
    # Four standard deviations of a share drawn 4000 times.
    np.testing.assert_allclose(counts, np.exp(LOGITS), atol=4 * 0.5 / np.sqrt(4000))


def test_temperature_sharpens_as_a_power() -> None:
    tokens, probabilities = Sampler(temperature=0.5).distribution(LOGITS)
    expected = np.exp(LOGITS.astype(np.float64)) ** 2
    np.testing.assert_allclose(probabilities, (expected / expected.sum())[tokens], rtol=1e-6)


def test_top_k_keeps_the_k_largest() -> None:
    tokens, probabilities = Sampler(temperature=1.0, top_k=3).distribution(LOGITS)
    assert tokens.tolist() == [1, 3, 4]
    np.testing.assert_allclose(probabilities, np.array([0.4, 0.25, 0.2]) / 0.85, rtol=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.01, 1), (0.39, 1), (0.41, 2), (0.64, 2), (0.66, 3), (0.9, 4), (1.0, 5)])
def test_top_p_keeps_the_smallest_set_that_reaches_p(top_p: float, kept: int) -> None:
    tokens, probabilities = Sampler(temperature=1.0, top_p=top_p).distribution(LOGITS)
    assert tokens.tolist() == [1, 3, 4, 2, 0][:kept]
    assert probabilities.sum() == pytest.approx(1)


@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=50),
    st.floats(0.05, 5),
    st.integers(0, 60),
    st.floats(0.01, 1),
)
def test_any_distribution_is_one_and_holds_the_best_token(
    logits: list[float], temperature: float, top_k: int, top_p: float
) -> None:
    array = np.array(logits, np.float32)
    tokens, probabilities = Sampler(temperature, top_k, top_p, seed=0).distribution(array)
    assert array[tokens[0]] == array.max()
    assert len(set(tokens.tolist())) == len(tokens) == len(probabilities) <= (top_k or len(logits))
    assert probabilities.sum() == pytest.approx(1)
    assert (np.diff(probabilities) <= 0).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
        ({"seed": -3}, "seed is -3"),
    ],
)
def test_values_out_of_range_are_refused(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        Sampler(**arguments)


def test_a_nan_logit_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="not a number"):
        Sampler()(np.array([0.0, np.nan], np.float32))
