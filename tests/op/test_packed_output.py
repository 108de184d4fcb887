"""Packed caches: outputs against float64 attention over the decoded rows."""

from __future__ import annotations

import numpy as np
import pytest
from support.packed_cases import PackedCase, run_operator, run_oracle, token_by_token

#: Largest error as a share of max|v|, for calls with one query.
#: int8: the query has 15 bits. Scores are then off by at most Σ|k|·max|q|·scale / 32512, about 1e-3 for the rows here,
#: and so are probabilities; probability times scale has 14 bits.
#: int4: query times scale has 8 bits and counts up to fifteen times: scores of sealed rows are off by some hundredths.
SHARE = {"int8": 2e-3, "int4": 5e-2}
#: Root of the mean square: errors of many rows are independent.
MEAN_SHARE = {"int8": 3e-4, "int4": 6e-3}

CASES = {
    "merging": {},
    "element": {"granularity": "element", "theta": 0.2},
    "local window": {"local_window": 57},
    "bias, sink, softcap": {"bias": True, "head_sink": True, "softcap": 3.0},
    "one head each": {"group": 1, "kv_heads": 1, "head_size": 64},
    "five heads": {"group": 5, "kv_heads": 1, "head_size": 33},
    "long heads": {"group": 2, "head_size": 100},
    "no sinks": {"sinks": 0, "window": 16},
}


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("prefill", ["exact", "delta"])
@pytest.mark.parametrize("name", CASES)
def test_outputs(name: str, prefill: str, cache_format: str) -> None:
    base = PackedCase(
        cache_format=cache_format, prefill=prefill, tokens=220, kv_heads=2, group=3, window=30, theta=0.2, starts=(0, 3)
    )
    case = base.replace(**CASES[name])
    chunks = [150, 3, 1, 1, 1, 40, *[1] * 24]
    found, expected = run_operator(case, chunks, threads=2), run_oracle(case, chunks)
    assert np.isfinite(found.output).all()
    largest = np.abs(case.sequence()["value"]).max()
    error = np.abs(found.output - expected.output)
    if prefill == "exact":
        # The first call reads nothing but what came in, in float32.
        assert error[:, :150].max() <= 2e-5 * largest
    assert error.max() <= SHARE[cache_format] * largest
    assert np.sqrt((error**2).mean()) <= MEAN_SHARE[cache_format] * largest


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_a_prompt_behind_a_past_reads_it_as_decoded(cache_format: str) -> None:
    """Calls with several queries widen the rows of the past to float32: no further rounding."""
    case = PackedCase(cache_format=cache_format, prefill="exact", tokens=420, window=30, theta=0.2, starts=(0, 9))
    chunks = [300, 37, 83]
    found, expected = run_operator(case, chunks, threads=2), run_oracle(case, chunks)
    bound = 5e-5 * np.abs(case.sequence()["value"]).max()
    np.testing.assert_allclose(found.output, expected.output, rtol=0, atol=bound)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_v_skip_leaves_out_no_more_than_it_may(cache_format: str) -> None:
    case = PackedCase(cache_format=cache_format, tokens=260, window=20, theta=0.3, v_skip=0.02)
    chunks = [200, *[1] * 60]
    found, full = run_operator(case, chunks), run_operator(case.replace(v_skip=0.0), chunks)
    largest = np.abs(case.sequence()["value"]).max()
    assert np.abs(found.output - full.output).max() <= case.tokens * case.v_skip * largest
    expected = run_oracle(case, chunks)
    skipped, least, most = (
        np.stack(run.statistics)[..., 5] for run in (found, run_oracle(case.replace(v_skip=0.0), chunks), expected)
    )
    assert (least <= skipped).all()
    # Quantised scores may fall on the other side of the bound for a row or two.
    assert skipped.sum() <= 1.02 * most.sum()


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "int8"])
def test_prefill_compute_stays_within_its_arithmetic(compute: str) -> None:
    """Bfloat16 has 8 significant bits, so scores of size s are off by about s/256·√2; int8 scores a little more."""
    case = PackedCase(prefill="exact", tokens=290, window=30, theta=0.2, head_size=64, starts=(0, 3))
    chunks = [200, 90]
    found = run_operator(case, chunks, prefill_compute=compute)
    expected = run_oracle(case, chunks)
    largest = np.abs(case.sequence()["value"]).max()
    bound = {"float32": 5e-5, "bfloat16": 2e-2, "int8": 6e-2}[compute] * largest
    assert np.abs(found.output - expected.output).max() <= bound
    assert np.array_equal(found.key, run_operator(case, chunks).key), "the cache does not depend on it"


def test_a_query_that_sees_nothing_gives_zero() -> None:
    case = PackedCase(tokens=12, starts=(0, 12, 7), prefill="delta", kv_heads=1)
    for chunks in ([12], token_by_token(case)):
        output = run_operator(case, chunks).output
        assert not output[1].any()
        assert not output[2, :7].any()
        assert output[2, 7:].any()
