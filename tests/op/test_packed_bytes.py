"""Packed caches: the operator's bytes are the oracle's, whatever the split into calls, buffers, threads or kernels."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.instruction_sets import vector_sets
from support.op_session import run_delta_attention
from support.packed_cases import (
    PackedCase,
    PackedRun,
    assert_same_bytes,
    run_operator,
    run_oracle,
    token_by_token,
)

from deltallm_onnx.reference import delta_attention


@st.composite
def packed_cases(draw: st.DrawFn, cache_format: str) -> PackedCase:
    granularity = draw(st.sampled_from(["row", "row", "element"]))
    sinks = draw(st.integers(0, 5))
    case = PackedCase(
        cache_format=cache_format,
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 5)),
        head_size=draw(st.one_of(st.integers(4, 20), st.integers(21, 100))),
        window=draw(st.integers(max(3, 8 - sinks), 40)),
        sinks=sinks,
        theta=draw(st.sampled_from([0.0, 0.15, 0.3, 0.6, 2.0])),
        granularity=granularity,
        row_rule=draw(st.sampled_from(["relative", "absolute"])),
        refresh=draw(st.sampled_from([0, 0, 0, 1, 11])),
        row_weight=granularity == "row" and draw(st.booleans()),
        local_window=draw(st.sampled_from([-1, -1, 6, 55])),
        bias=draw(st.sampled_from([False, False, True])),
        head_sink=draw(st.booleans()),
        softcap=draw(st.sampled_from([0.0, 0.0, 2.5])),
        prefill=draw(st.sampled_from(["exact", "delta"])),
        spare=draw(st.sampled_from([None, 0, 5, 16])),
        seed=draw(st.integers(0, 2**31)),
    )
    longest = 90 if cache_format == "int8" else case.window + case.sinks + 300
    tokens = draw(st.integers(1, longest))
    starts = draw(st.lists(st.integers(0, min(tokens, 12)), min_size=1, max_size=2))
    return case.replace(tokens=tokens, starts=tuple(starts))


def split(rng: np.random.Generator, tokens: int) -> list[int]:
    """Calls of one token and of several, in any order."""
    chunks: list[int] = []
    while sum(chunks) < tokens:
        size = int(rng.choice([1, 1, 1, 2, 7, 40, 150]))
        chunks.append(min(size, tokens - sum(chunks)))
    return chunks


def assert_same_counts(case: PackedCase, found: PackedRun, expected: PackedRun) -> None:
    """Call by call; what v_skip may leave out is another test's."""
    for call, (have, want) in enumerate(zip(found.statistics, expected.statistics, strict=True)):
        np.testing.assert_array_equal(have, want, err_msg=f"statistics of call {call} of {case}")


def check(case: PackedCase) -> None:
    rng = np.random.default_rng(case.seed)
    chunks = split(rng, case.tokens)
    expected = run_oracle(case, chunks)
    found = run_operator(case, chunks, threads=2)
    assert_same_bytes(case, found, expected)
    assert_same_counts(case, found, expected)
    others = {
        "one call": run_operator(case, [case.tokens]),
        "token by token": run_operator(case, token_by_token(case), isa="scalar"),
    }
    if case.spare is not None:
        others["in place"] = run_operator(case, chunks, in_place=True)
    for name, run in others.items():
        assert run.key.shape == expected.key.shape, name
        assert_same_bytes(case, run, expected)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(packed_cases("int8"))
def test_int8_bytes(case: PackedCase) -> None:
    check(case)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(packed_cases("int4"))
def test_int4_bytes(case: PackedCase) -> None:
    check(case)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("granularity", ["row", "element"])
@pytest.mark.parametrize("prefill", ["exact", "delta"])
def test_every_instruction_set_and_thread_count_leaves_the_same_bytes(
    granularity: str, cache_format: str, prefill: str
) -> None:
    case = PackedCase(
        cache_format=cache_format,
        granularity=granularity,
        prefill=prefill,
        head_size=37,
        kv_heads=3,
        group=2,
        tokens=330,
        starts=(0, 4),
        window=33,
        theta=0.2,
        spare=7,
    )
    chunks = [200, 1, 1, 90, *[1] * 38]
    scalar = run_operator(case, chunks, isa="scalar")
    assert scalar.statistics[0][:, 1].sum() > 0
    bound = np.abs(case.sequence()["value"]).max() * (2e-3 if cache_format == "int8" else 5e-2)
    for isa in vector_sets():
        for threads in (1, 2):
            vector = run_operator(case, chunks, isa=isa, threads=threads, in_place=True)
            assert_same_bytes(case, vector, scalar)
            for have, want in zip(vector.statistics, scalar.statistics, strict=True):
                np.testing.assert_array_equal(have, want, err_msg=isa)
            np.testing.assert_allclose(vector.output, scalar.output, rtol=0, atol=bound, err_msg=f"{isa}, {threads}")


def test_what_is_not_in_use_stays_as_it_is_in_place() -> None:
    case = PackedCase(tokens=40, kv_heads=1, spare=30, theta=0.3)
    chunks = [25, *[1] * 15]
    run, oracle = run_operator(case, chunks, in_place=True), run_oracle(case, chunks)
    # Tokens never reach the slots from 40 on; a residual lies at most one slot behind the last row.
    place = case.layout.row_places(np.arange(41, 70), 70, is_key=True)
    for slab in (run.key, run.value):
        assert (slab.reshape(-1)[place[0]] == 0xA5).all()
    assert_same_bytes(case, run, oracle)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("prefill", ["exact", "delta"])
def test_rows_of_their_own_length_as_group_query_attention_tells_them(cache_format: str, prefill: str) -> None:
    """A right-padded prompt, then tokens behind each row's own end, in one buffer with spare rows."""
    case = PackedCase(cache_format=cache_format, prefill=prefill, tokens=230, starts=(0, 0, 0), window=12, theta=0.3)
    lengths = np.array([190, 3, 171])
    sequence, rows = case.sequence(), case.layout.rows_needed(230)
    key, value = (np.zeros((3, case.kv_heads, rows, case.layout.bytes_per_token), np.uint8) for _ in range(2))
    steps = [(np.zeros(3, int), 190), *((lengths + done, 1) for done in range(20)), (lengths + 20, 9)]
    for past, new in steps:
        columns = (past[:, None] + np.arange(new))[..., None]
        feeds = {name: np.take_along_axis(x, columns, axis=1) for name, x in sequence.items()}
        length = lengths if new == 190 else past + new
        feeds |= {
            **case.constants(),
            "seqlens_k": (length - 1).astype(np.int32),
            "total_sequence_length": np.array(length.max(), np.int32),
            "past_key": key,
            "past_value": value,
        }
        found = run_delta_attention(feeds, **case.attributes)
        expected = delta_attention(**feeds, **case.attributes)
        for b in range(3):
            marks = case.in_use(expected[1], expected[2], tokens=length)
            for have, want, mark in zip(found[1:3], expected[1:3], marks, strict=True):
                np.testing.assert_array_equal(have[b][mark[b]], want[b][mark[b]], err_msg=f"row {b}, {new} new tokens")
        np.testing.assert_array_equal(found[3], expected[3])
        bound = np.abs(sequence["value"]).max() * (2e-3 if cache_format == "int8" else 5e-2)
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=bound)
        key, value = found[1], found[2]


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
@pytest.mark.parametrize("granularity", ["row", "element"])
def test_rows_of_every_size_and_rows_that_are_not_finite(granularity: str, cache_format: str) -> None:
    """From scales below the smallest half to rows no scale fits, and NaN: the same bytes, and the same outputs."""
    case = PackedCase(cache_format=cache_format, granularity=granularity, tokens=190, kv_heads=1, spare=2, theta=0.5)
    feeds = case.feeds(0, case.tokens)
    rng = np.random.default_rng(8)
    for name in ("key", "value"):
        feeds[name] *= 2.0 ** rng.integers(-40, 20, (1, case.tokens, 1))
        feeds[name][0, rng.random(case.tokens) < 0.05] = 0
    feeds["key"][0, 120, 3], feeds["value"][0, 125, 4], feeds["key"][0, 130, 5] = np.nan, np.inf, 3e38
    feeds = {name: x.astype(np.int64 if name == "attention_mask" else np.float32) for name, x in feeds.items()}
    found, expected = run_delta_attention(feeds, **case.attributes), delta_attention(**feeds, **case.attributes)
    runs = [PackedRun(*result[:3], [result[3]]) for result in (found, expected)]
    assert_same_bytes(case, *runs)
    assert_same_counts(case, *runs)
    finite = np.isfinite(expected[0]).all(axis=2)
    np.testing.assert_array_equal(np.isfinite(found[0]).all(axis=2), finite)
    # A row that is not finite spoils the outputs from its token on, before that they are finite.
    assert finite[0, :120].all()
    assert not finite[0, 140:].any()


@pytest.mark.parametrize("query_type", ["float32", "float16"])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotated_and_packed_projections(interleaved: int, query_type: str) -> None:
    """Query, key and value in one tensor, rotated inside the operator, as onnxruntime-genai's models have them."""
    case = PackedCase(tokens=60, starts=(0, 4), theta=0.5, prefill="exact")
    sequence = case.sequence()
    joined = np.concatenate([sequence["query"], sequence["key"], sequence["value"]], axis=2).astype(query_type)
    angles = np.random.default_rng(3).uniform(0, 2 * np.pi, (80, 7))
    attributes = {**case.attributes, "do_rotary": 1, "rotary_interleaved": interleaved}
    key = value = np.zeros((2, case.kv_heads, 64, case.layout.bytes_per_token), np.uint8)
    for begin, end in ((0, 40), (40, 41), (41, 42), (42, 60)):
        feeds = {
            "query": np.ascontiguousarray(joined[:, begin:end]),
            "cos_cache": np.cos(angles).astype(query_type),
            "sin_cache": np.sin(angles).astype(query_type),
            "attention_mask": case.feeds(begin, end)["attention_mask"],
            **case.constants(),
            "past_key": key,
            "past_value": value,
        }
        found = run_delta_attention(feeds, **attributes)
        expected = delta_attention(**{"key": None, "value": None, **feeds}, **attributes)
        assert found[0].dtype == np.dtype(query_type)
        marks = case.in_use(expected[1], expected[2], tokens=end - np.array(case.starts))
        for have, want, mark in zip(found[1:3], expected[1:3], marks, strict=True):
            np.testing.assert_array_equal(have[mark], want[mark], err_msg=f"tokens {begin} to {end}")
        np.testing.assert_array_equal(found[3], expected[3])
        bound = np.abs(sequence["value"]).max() * 2e-3
        np.testing.assert_allclose(found[0].astype(float), expected[0].astype(float), rtol=2.0**-10, atol=bound)
        key, value = found[1], found[2]


def test_the_environment_of_this_run_names_no_instruction_set() -> None:
    assert "DELTALLM_ISA" not in os.environ, "the tests above choose the kernels themselves"
