"""With threshold 0, DeltaAttention is com.microsoft.GroupQueryAttention: the same inputs give the same results."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import onnxruntime as ort
import pytest
from support.group_query_cases import PHASES, GroupQueryCase, all_cases
from support.op_session import (
    GROUP_QUERY_INPUTS,
    delta_attention_model,
    one_node_model,
    onnx_type,
    run_delta_attention,
    run_group_query_attention,
    session,
)

#: GroupQueryAttention rounds float16 at several places; half has 11 significant bits, outputs are of order 1 to 4.
TOLERANCE = {"float32": 1e-5, "float16": 4 * 2.0**-10}


def compare(case: GroupQueryCase, ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    tolerance = TOLERANCE[case.dtype]
    for row, length in enumerate(case.lengths):
        real = case.real_new_tokens(row)
        np.testing.assert_allclose(
            ours[0][row, :real].astype(np.float32),
            theirs[0][row, :real].astype(np.float32),
            rtol=tolerance,
            atol=tolerance,
            err_msg=f"output of batch row {row}",
        )
        for which, name in ((1, "present_key"), (2, "present_value")):
            np.testing.assert_allclose(
                ours[which][row, :, :length].astype(np.float32),
                theirs[which][row, :, :length].astype(np.float32),
                rtol=tolerance,
                atol=tolerance,
                err_msg=f"{name} of batch row {row}",
            )


def run_both(case: GroupQueryCase) -> None:
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    feeds = case.feeds(rng)
    theirs = run_group_query_attention(feeds, **case.node_attributes())
    threshold = np.zeros(case.kv_heads, np.float32)
    ours = run_delta_attention({**feeds, "threshold": threshold}, **case.node_attributes())
    assert ours[1].shape == theirs[1].shape
    assert ours[0].dtype == theirs[0].dtype
    compare(case, list(ours), list(theirs))


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_same_results(case: GroupQueryCase) -> None:
    run_both(case)


@pytest.mark.parametrize("phase", PHASES)
def test_same_results_in_float16(phase: str) -> None:
    run_both(GroupQueryCase(f"float16, {phase}", dtype="float16", rotary="half", **PHASES[phase]))


def test_absent_threshold_is_zero() -> None:
    case = GroupQueryCase("absent threshold", **PHASES["decode"])
    feeds = case.feeds(np.random.default_rng(5))
    theirs = run_group_query_attention(feeds, **case.node_attributes())
    compare(case, list(run_delta_attention(feeds, **case.node_attributes())), list(theirs))


@pytest.mark.parametrize("phase", ["prompt", "decode", "chunk"])
def test_position_ids(phase: str) -> None:
    run_both(GroupQueryCase(f"position_ids, {phase}", rotary="half", position_ids=True, **PHASES[phase]))


def test_absent_past() -> None:
    case = GroupQueryCase("absent past", **PHASES["ragged prompt"])
    feeds = case.feeds(np.random.default_rng(6))
    theirs = run_group_query_attention(feeds, **case.node_attributes())
    del feeds["past_key"], feeds["past_value"]
    compare(case, list(run_delta_attention(feeds, **case.node_attributes())), list(theirs))


def test_a_shared_buffer_generates_like_the_peer() -> None:
    """Prompt, chunk and three tokens on one buffer bound as past and present, beside the peer doing the same."""
    case = GroupQueryCase("shared", rotary="half", new_tokens=7, lengths=(7,), capacity=20)
    rng = np.random.default_rng(7)
    kind = onnx_type(np.float32)
    feeds = case.feeds(rng)
    types = {"output": kind, "present_key": kind, "present_value": kind}
    their_model = one_node_model(
        "GroupQueryAttention", GROUP_QUERY_INPUTS, feeds, types, case.node_attributes(), domain="com.microsoft"
    )
    our_model = delta_attention_model(feeds, statistics=False, **case.node_attributes())
    sessions = {"ours": session(our_model), "theirs": session(their_model)}
    caches = {
        name: {part: ort.OrtValue.ortvalue_from_numpy(feeds[f"past_{part}"].copy()) for part in ("key", "value")}
        for name in sessions
    }
    length = 0
    for new_tokens in (7, 4, 1, 1, 1):
        length += new_tokens
        step = dataclasses.replace(case, new_tokens=new_tokens, lengths=(length,))
        call = step.feeds(rng) | {name: feeds[name] for name in ("cos_cache", "sin_cache")}
        results = {}
        for name, running in sessions.items():
            binding = running.io_binding()
            for key, array in call.items():
                if not key.startswith("past_"):
                    binding.bind_cpu_input(key, array)
            for part, cache in caches[name].items():
                binding.bind_ortvalue_input(f"past_{part}", cache)
                binding.bind_ortvalue_output(f"present_{part}", cache)
            binding.bind_output("output")
            running.run_with_iobinding(binding)
            parts = [cache.numpy() for cache in caches[name].values()]
            results[name] = [binding.copy_outputs_to_cpu()[-1], *parts]
        # The outputs come in the order they were bound: the caches first.
        compare(step, results["ours"], results["theirs"])
