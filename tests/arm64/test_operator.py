"""The operator in ARM64's ONNX Runtime leaves the bytes that the oracle leaves here, and computes what it computes."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import onnxruntime as ort
import pytest
from support.arm64 import CPUS, Guest
from support.delta_feeds import HEADS, delta_feeds
from support.group_query_cases import FEATURES, PHASES, GroupQueryCase
from support.op_session import GROUP_QUERY_INPUTS, delta_attention_model, one_node_model, onnx_type
from support.packed_cases import PackedCase, run_oracle

from deltallm_onnx.reference import delta_attention

CACHES = {"past_key": "present_key", "past_value": "present_value"}

#: Each takes another path: merged runs, elements, a window of the model's own, a batch, sealed blocks, a bias.
PACKED = {
    "int8 runs": PackedCase(tokens=53, spare=5),
    "int8 elements": PackedCase(granularity="element", head_size=36, tokens=47, spare=0),
    "int8 local": PackedCase(local_window=23, softcap=2.5, starts=(0, 7), tokens=59, spare=3),
    "int8 bias": PackedCase(bias=True, head_sink=True, group=5, tokens=50, spare=16),
    "int8 exact": PackedCase(prefill="exact", tokens=64, head_size=33, spare=1),
    "int4 runs": PackedCase(cache_format="int4", tokens=290, head_size=68, theta=0.1, spare=7),
    "int4 elements": PackedCase(cache_format="int4", granularity="element", tokens=151, spare=0),
    "int4 exact": PackedCase(cache_format="int4", prefill="exact", row_weight=True, tokens=160, theta=0.1, spare=2),
}
#: Calls of one token behind the prompt.
STEPS = 12
#: Largest error as a share of max|v|; why it is so large: tests/op/test_packed_output.py.
SHARE = {"int8": 2e-3, "int4": 5e-2}

#: (cache, granularity, new tokens)
FLOAT = list(itertools.product(("float32", "float16"), ("row", "element"), (1, 5)))
FLOAT_ATTRIBUTES = {**HEADS, "delta_window": 3, "sinks": 1}

GROUP_QUERY = (
    ("plain", "long prompt"),
    ("everything", "ragged prompt"),
    ("everything", "ragged decode"),
    ("rotary partial", "chunk"),
    ("bias per head", "decode"),
    ("head size 40", "long decode"),
)

AXES = {name: {1: "new"} for name in ("query", "key", "value")}
AXES |= {"attention_mask": {1: "total"}, "attention_bias": {2: "new", 3: "total"}}


def ends_of(case: PackedCase) -> list[int]:
    return [*range(case.tokens - STEPS, case.tokens + 1)]


def add_packed(guest: Guest, cpu: str) -> None:
    for name, case in PACKED.items():
        past = case.first_past()
        assert past is not None
        arrays = {**case.feeds(0, case.tokens), "past_key": past, "past_value": past}
        if case.bias:
            # As PackedCase gives it to every call: all rows, of which a call takes its own.
            assert arrays["attention_bias"].shape[2:] == (case.tokens, case.tokens)
        for isa in ("scalar", CPUS[cpu]):
            guest.add(
                f"{name} {isa}",
                delta_attention_model(arrays, **case.attributes),
                arrays,
                ends=ends_of(case),
                axes=AXES,
                outputs={"output": 1, "statistics": None},
                caches=CACHES,
                isa=isa,
                threads=2 if name == "int4 runs" else 1,
            )


def float_case(cache: str, granularity: str, new_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    seed = zlib.crc32(f"{cache}{granularity}{new_tokens}".encode())
    feeds = delta_feeds(np.random.default_rng(seed), cache=cache, new_tokens=new_tokens, past=19, padding=2)
    return feeds, {**FLOAT_ATTRIBUTES, "granularity": granularity, "cache_format": cache}


def add_float(guest: Guest) -> None:
    for case in FLOAT:
        feeds, attributes = float_case(*case)
        guest.add(
            "{} {} {}".format(*case),
            delta_attention_model(feeds, **attributes),
            feeds,
            ends=[feeds["query"].shape[1]],
            axes={},
            outputs={"output": 1, "statistics": None},
            caches=CACHES,
            in_place=False,
        )


def group_query_case(feature: str, phase: str) -> tuple[GroupQueryCase, dict[str, np.ndarray]]:
    case = GroupQueryCase(f"{feature}, {phase}", **{**PHASES[phase], **FEATURES[feature]})
    return case, case.feeds(np.random.default_rng(zlib.crc32(case.name.encode())))


def add_group_query(guest: Guest) -> None:
    for chosen in GROUP_QUERY:
        case, feeds = group_query_case(*chosen)
        kind = onnx_type(np.float32)
        types = {"output": kind, "present_key": kind, "present_value": kind}
        attributes = case.node_attributes()
        theirs = one_node_model(
            "GroupQueryAttention", GROUP_QUERY_INPUTS, feeds, types, attributes, domain="com.microsoft"
        )
        exact = {**feeds, "threshold": np.zeros(case.kv_heads, np.float32)}
        ours = delta_attention_model(exact, statistics=False, **attributes)
        for name, model, arrays in (("theirs", theirs, feeds), ("ours", ours, exact)):
            guest.add(
                f"{case.name} {name}",
                model,
                arrays,
                ends=[case.new_tokens],
                axes={},
                outputs={"output": 1},
                caches=CACHES,
                in_place=False,
            )


def add_refused(guest: Guest) -> None:
    feeds, attributes = float_case(*FLOAT[0])
    for isa in ("neon_dotprod", "avx2"):
        guest.add(
            f"refused {isa}",
            delta_attention_model(feeds, **attributes),
            feeds,
            ends=[1],
            axes={},
            outputs={"output": 1},
            caches=CACHES,
            in_place=False,
            isa=isa,
        )


@pytest.fixture(scope="module")
def guest(cpu: str, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Everything below, in one process under qemu."""
    made = Guest(tmp_path_factory.mktemp(cpu))
    add_packed(made, cpu)
    add_float(made)
    add_group_query(made)
    add_refused(made)
    made.run(cpu)
    return made


def test_version(guest: Guest) -> None:
    assert guest.version == ort.__version__


@pytest.mark.parametrize("name", PACKED)
def test_packed_caches(guest: Guest, cpu: str, name: str) -> None:
    case = PACKED[name]
    expected = run_oracle(case, np.diff([0, *ends_of(case)]).tolist())
    keys, values = case.in_use(expected.key, expected.value)
    assert keys.any(axis=(2, 3)).all()
    bound = SHARE[case.cache_format] * np.abs(case.sequence()["value"]).max()
    for isa in ("scalar", CPUS[cpu]):
        found = guest.result(f"{name} {isa}")
        np.testing.assert_array_equal(found["present_key"][keys], expected.key[keys], err_msg=isa)
        np.testing.assert_array_equal(found["present_value"][values], expected.value[values], err_msg=isa)
        np.testing.assert_array_equal(found["statistics"], expected.statistics, err_msg=isa)
        np.testing.assert_allclose(found["output"], expected.output, rtol=0, atol=bound, err_msg=isa)


@pytest.mark.parametrize("case", FLOAT, ids=lambda case: " ".join(map(str, case)))
def test_float_caches(guest: Guest, case: tuple[str, str, int]) -> None:
    feeds, attributes = float_case(*case)
    output, key, value, statistics = delta_attention(**feeds, **attributes)
    found = guest.result("{} {} {}".format(*case))
    np.testing.assert_array_equal(found["present_key"], key)
    np.testing.assert_array_equal(found["present_value"], value)
    np.testing.assert_array_equal(found["statistics"][0], statistics)
    real = feeds["attention_mask"][:, -case[2] :] > 0
    np.testing.assert_allclose(found["output"][real], output[real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("chosen", GROUP_QUERY, ids=", ".join)
def test_threshold_zero_is_group_query_attention(guest: Guest, chosen: tuple[str, str]) -> None:
    case, _ = group_query_case(*chosen)
    ours, theirs = (guest.result(f"{case.name} {whose}") for whose in ("ours", "theirs"))
    for row, length in enumerate(case.lengths):
        new = case.real_new_tokens(row)
        np.testing.assert_allclose(ours["output"][row, :new], theirs["output"][row, :new], rtol=1e-5, atol=1e-5)
        for name in CACHES.values():
            have, want = ours[name][row, :, :length], theirs[name][row, :, :length]
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_kernels_of_other_processors_are_refused(guest: Guest, cpu: str) -> None:
    """The emulated processors do differ, and no kernel is taken for another."""
    expected = {"refused avx2"} | ({"refused neon_dotprod"} if cpu == "cortex-a53" else set())
    assert set(guest.refusals) == expected
    for name, sentence in guest.refusals.items():
        assert f"DELTALLM_ISA is '{name.removeprefix('refused ')}'" in sentence
        assert "cannot run" in sentence
