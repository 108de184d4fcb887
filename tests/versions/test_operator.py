"""One operator library in every release of ONNX Runtime: the same numbers, caches in place, and no wrong shape."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support.delta_feeds import HEADS, delta_feeds
from support.group_query_cases import FEATURES, PHASES, GroupQueryCase
from support.onnxruntime_releases import NEWEST, OLDER, Guest, version
from support.op_session import (
    GROUP_QUERY_INPUTS,
    delta_attention_model,
    one_node_model,
    onnx_type,
    run_group_query_attention,
)
from support.packed_cases import PackedCase, run_oracle

from deltallm_onnx.reference import delta_attention

CACHES = {"past_key": "present_key", "past_value": "present_value"}
AXES = {"query": {1: "new"}, "key": {1: "new"}, "value": {1: "new"}, "attention_mask": {1: "total"}}

#: feature → first release of the list whose own GroupQueryAttention has it for CPUs.
GROUP_QUERY = {
    "plain": "1.20",
    "packed": "1.20",
    "group of 7": "1.20",
    "head size 40": "1.20",
    "rotary": "1.20",
    "rotary interleaved partial": "1.20",
    "scale": "1.20",
    "softcap": "1.20",
    "local window": "1.20",
    "bias per head": "1.22",
    "head sink": "1.24",
    "everything": "1.24",
}
#: From here on the tokens of GroupQueryAttention's local window include the newest, as ours do; before, they did not.
COUNTS_THE_NEWEST = "1.23"
IN_PLACE = "in place"
GROUP_QUERY_CASES = [
    *itertools.product(GROUP_QUERY, ("prompt", "ragged prompt", "ragged decode", "chunk"), ("", IN_PLACE))
]

#: (cache, granularity)
FLOAT = [*itertools.product(("float32", "float16"), ("row", "element"))]
TOKENS, CAPACITY = 23, 30
ENDS = (14, 15, 16, 19, 20, 21, 22, 23)
FLOAT_ATTRIBUTES = {**HEADS, "delta_window": 3, "sinks": 1}

#: int4: two sealed blocks.
PACKED = {
    "int8": PackedCase(tokens=53, starts=(0, 7), spare=5),
    "int4": PackedCase(cache_format="int4", tokens=290, head_size=68, theta=0.1, spare=7),
}
STEPS = 12
#: Largest error as a share of max|v|; why it is so large: tests/op/test_packed_output.py.
SHARE = {"int8": 2e-3, "int4": 5e-2}

#: From here on ONNX Runtime asks the library for shapes. Before, it dereferences what an absent optional input does not
#: have before it asks, so the library gives types alone.
INFERS = "1.24"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Declared shapes of the inputs, and what then is to be said of the outputs; "?" is a name nothing else has."""

    feeds: dict[str, Any]
    declared: dict[str, list[Any]]
    outputs: dict[str, tuple[str, tuple[Any, ...]]]
    attributes: dict[str, Any]

    @property
    def caches(self) -> dict[str, str]:
        return CACHES if "past_key" in self.feeds else {}

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions of the inputs by name."""
        return {
            symbol: size
            for name, shape in self.declared.items()
            for symbol, size in zip(shape, self.feeds[name].shape, strict=True)
            if isinstance(symbol, str)
        }

    @property
    def model(self) -> bytes:
        """The node, and a second one behind it that can only know what the first one's output is said to be."""
        made = delta_attention_model(self.feeds, shapes=self.declared, **self.attributes)
        model = onnx.load_from_string(made)
        model.graph.node.append(helper.make_node("Identity", ["output"], ["copy"]))
        model.graph.output.append(helper.make_tensor_value_info("copy", TensorProto.FLOAT, None))
        return model.SerializeToString()


def shapes_cases() -> dict[str, Shapes]:
    feeds = delta_feeds(np.random.default_rng(0), cache="float16")
    symbols = {"query": ["batch", "new", 72], "past_key": ["batch", 2, "past", 12]}
    packed = {"query": np.ones((2, 3, (6 + 4) * 12), np.float32)}

    def outputs(shape: tuple[Any, ...], present: tuple[Any, ...], cache: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
        floats = dict.fromkeys(("output", "copy"), ("tensor(float)", shape))
        # An output that a node may leave out has no inferred shape.
        statistics: tuple[str, tuple[Any, ...]] = ("tensor(int64)", ())
        return {**floats, **dict.fromkeys(CACHES.values(), (f"tensor({cache})", present)), "statistics": statistics}

    return {
        "symbols": Shapes(feeds, symbols, outputs(("batch", "new", 72), ("batch", 2, "?", 12), "float16"), HEADS),
        "numbers": Shapes(
            feeds,
            {name: list(array.shape) for name, array in feeds.items()},
            outputs((2, 3, 72), (2, 2, 12, 12), "float16"),
            HEADS,
        ),
        "packed query": Shapes(
            packed,
            {"query": [2, "s", 120]},
            outputs((2, "s", 72), (2, 2, "s", 12), "float"),
            HEADS,
        ),
    }


SHAPES = shapes_cases()
#: A request: nothing but an attribute tells the type of the caches.
NO_PAST = "float16 without a past"


def group_query_case(feature: str, phase: str, place: str) -> tuple[GroupQueryCase, dict[str, np.ndarray]]:
    name = " ".join(filter(None, (feature, phase, place)))
    options: dict[str, Any] = {**PHASES[phase], **FEATURES[feature]}
    if place:
        options["capacity"] = max(options["lengths"]) + 3
    case = GroupQueryCase(name, **options)
    return case, case.feeds(np.random.default_rng(zlib.crc32(name.encode())))


def their_attributes(case: GroupQueryCase, release: str) -> dict[str, Any]:
    """What asks GroupQueryAttention of a release for what our attributes mean."""
    attributes = case.node_attributes()
    if "local_window_size" in attributes and version(release) < version(COUNTS_THE_NEWEST):
        attributes["local_window_size"] -= 1
    return attributes


def add_group_query(guest: Guest, release: str) -> None:
    for chosen in GROUP_QUERY_CASES:
        case, feeds = group_query_case(*chosen)
        kind = onnx_type(np.float32)
        types = {"output": kind, "present_key": kind, "present_value": kind}
        attributes = their_attributes(case, release)
        theirs = one_node_model(
            "GroupQueryAttention", GROUP_QUERY_INPUTS, feeds, types, attributes, domain="com.microsoft"
        )
        exact = {**feeds, "threshold": np.zeros(case.kv_heads, np.float32)}
        ours = delta_attention_model(exact, statistics=False, **case.node_attributes())
        for whose, model, arrays in (("theirs", theirs, feeds), ("ours", ours, exact)):
            guest.add(
                f"{case.name} {whose}",
                model,
                arrays,
                ends=[case.new_tokens],
                axes={},
                outputs={"output": 1},
                caches=CACHES,
                in_place=chosen[2] == IN_PLACE,
            )


def float_sequence(cache: str, granularity: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    seed = zlib.crc32(f"{cache} {granularity}".encode())
    feeds = delta_feeds(np.random.default_rng(seed), cache=cache, new_tokens=TOKENS, past=0, padding=2)
    feeds["key"] = feeds["key"][:, :1] + 0.2 * feeds["key"]  # near enough to each other to be held
    for past in CACHES:
        B, Hkv, _, D = feeds[past].shape
        feeds[past] = np.zeros((B, Hkv, CAPACITY, D), cache)
    return feeds, {**FLOAT_ATTRIBUTES, "granularity": granularity, "cache_format": cache}


def add_caches(guest: Guest) -> None:
    """One buffer is past and present of every call."""
    for case in FLOAT:
        feeds, attributes = float_sequence(*case)
        guest.add(
            " ".join(case),
            delta_attention_model(feeds, **attributes),
            feeds,
            ends=ENDS,
            axes=AXES,
            outputs={"output": 1, "statistics": None},
            caches=CACHES,
        )
    for name, packed in PACKED.items():
        past = packed.first_past()
        assert past is not None
        arrays = {**packed.feeds(0, packed.tokens), "past_key": past, "past_value": past}
        guest.add(
            name,
            delta_attention_model(arrays, **packed.attributes),
            arrays,
            ends=packed_ends(packed),
            axes=AXES,
            outputs={"output": 1, "statistics": None},
            caches=CACHES,
            threads=2,
        )


def packed_ends(case: PackedCase) -> list[int]:
    return [*range(case.tokens - STEPS, case.tokens + 1)]


def add_shapes(guest: Guest) -> None:
    for name, case in SHAPES.items():
        guest.add(
            name,
            case.model,
            case.feeds,
            ends=[case.feeds["query"].shape[1]],
            axes={},
            outputs={"output": 1, "copy": 1},
            caches=case.caches,
            in_place=False,
        )
    packed = SHAPES["packed query"]
    guest.add(
        NO_PAST,
        delta_attention_model(packed.feeds, cache_format="float16", **HEADS),
        packed.feeds,
        ends=[packed.feeds["query"].shape[1]],
        axes={},
        outputs={"output": 1},
        caches={},
        in_place=False,
    )


@pytest.fixture(scope="module", params=(*OLDER, NEWEST))
def release(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def guest(release: str, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    """Everything below, in one process with that release."""
    folder: Path = tmp_path_factory.mktemp("onnxruntime")
    made = Guest(folder)
    add_group_query(made, release)
    add_caches(made)
    add_shapes(made)
    made.run(release)
    return made


def largest_difference(case: GroupQueryCase, ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Of outputs and caches, over what is not padding; relative to values of order 1."""
    errors = []
    for row, length in enumerate(case.lengths):
        new = case.real_new_tokens(row)
        pairs = [(ours["output"][row, :new], theirs["output"][row, :new])]
        pairs += [(ours[name][row, :, :length], theirs[name][row, :, :length]) for name in CACHES.values()]
        errors += [float((np.abs(have - want) / (1 + np.abs(want))).max()) for have, want in pairs]
    return max(errors)


def test_version(guest: Guest, release: str) -> None:
    assert guest.version == release


@pytest.mark.parametrize("chosen", GROUP_QUERY_CASES, ids=" ".join)
def test_threshold_zero_is_group_query_attention(guest: Guest, release: str, chosen: tuple[str, str, str]) -> None:
    """The newest release's, and that release's own where it has one for CPUs."""
    case, feeds = group_query_case(*chosen)
    ours = guest.result(f"{case.name} ours")
    newest = dict(
        zip(("output", *CACHES.values()), run_group_query_attention(feeds, **case.node_attributes()), strict=True)
    )
    assert largest_difference(case, ours, newest) < 1e-5
    own = f"{case.name} theirs"
    has_own = own not in guest.refusals and largest_difference(case, ours, guest.result(own)) < 1e-5
    assert has_own == (version(release) >= version(GROUP_QUERY[chosen[0]])), guest.refusals.get(own, "it differs")


@pytest.mark.parametrize("case", FLOAT, ids=" ".join)
def test_float_caches_in_place(guest: Guest, case: tuple[str, str]) -> None:
    feeds, attributes = float_sequence(*case)
    pasts = {name: feeds.pop(name) for name in CACHES}
    outputs, statistics, begin = [], [], 0
    for end in ENDS:
        parts = {name: feeds[name][:, begin:end] for name in ("query", "key", "value")}
        mask = feeds["attention_mask"][:, :end]
        output, *presents, counts = delta_attention(
            **parts, **pasts, threshold=feeds["threshold"], attention_mask=mask, **attributes
        )
        pasts = dict(zip(CACHES, presents, strict=True))
        outputs.append(output)
        statistics.append(counts)
        begin = end
    found = guest.result(" ".join(case))
    assert found["present_key"].shape[2] == CAPACITY
    for past, present in CACHES.items():
        np.testing.assert_array_equal(found[present][:, :, :TOKENS], pasts[past][:, :, :TOKENS])
    np.testing.assert_array_equal(found["statistics"], statistics)
    assert np.sum(statistics, axis=0)[:, 1].min() > 0, "nothing is held"
    real = feeds["attention_mask"] > 0
    np.testing.assert_allclose(found["output"][real], np.concatenate(outputs, axis=1)[real], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", PACKED)
def test_packed_caches_in_place(guest: Guest, name: str) -> None:
    case = PACKED[name]
    expected = run_oracle(case, np.diff([0, *packed_ends(case)]).tolist())
    keys, values = case.in_use(expected.key, expected.value)
    assert keys.any(axis=(2, 3)).all()
    found = guest.result(name)
    np.testing.assert_array_equal(found["present_key"][keys], expected.key[keys])
    np.testing.assert_array_equal(found["present_value"][values], expected.value[values])
    np.testing.assert_array_equal(found["statistics"], expected.statistics)
    real = case.feeds(0, case.tokens)["attention_mask"] > 0
    bound = SHARE[name] * np.abs(case.sequence()["value"]).max()
    np.testing.assert_allclose(found["output"][real], expected.output[real], rtol=0, atol=bound)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(guest: Guest, release: str, name: str) -> None:
    case, said = SHAPES[name], guest.outputs(name)
    infers = version(release) >= version(INFERS)
    for output, (kind, expected) in case.outputs.items():
        assert said[output].type == kind
        shape = tuple("?" if str(d).startswith("deltallm_unknown_") else d for d in said[output].shape)
        assert shape == expected or not (infers or shape), output
    for output, array in guest.result(name).items():
        shape = said[output].shape or array.shape
        sizes = [case.sizes.get(d, n) if isinstance(d, str) else d for d, n in zip(shape, array.shape, strict=True)]
        assert sizes == list(array.shape), output


def test_type_of_caches_without_a_past(guest: Guest, release: str) -> None:
    """Without inference the first type that would do is taken: refused when the model is loaded, not converted."""
    if version(release) < version(INFERS):
        assert "output arg (present_key) of node (node) does not match expected type" in guest.refusals[NO_PAST]
    else:
        assert guest.outputs(NO_PAST)["present_key"].type == "tensor(float16)"
