"""The head size of a GroupQueryAttention node: each witness alone, two that disagree, and none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from deltallm_onnx.passes.head_size import channels, head_size_of
from deltallm_onnx.passes.site import NotUnderstood

#: 6·24 = 144, 2·24 = 48 and (6 + 4)·24 = 240 channels: nothing here is of the same size by accident.
QUERY_HEADS, KV_HEADS, SIZE = 6, 2, 24
HIDDEN = 35


def tensor(name: str, last: int | str | None = None) -> ir.Value:
    shape = None if last is None else ir.Shape(["batch", "sequence", last])
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=shape)


def cache(name: str, last: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(["batch", KV_HEADS, "past", last]))


def attention(
    query: ir.Value, key: ir.Value | None = None, value: ir.Value | None = None, past: int | str = "kv_cache_dim"
) -> tuple[ir.Node, dict[str, ir.Value | None]]:
    """A node that says nothing about its size but in what it is given, and its inputs by name."""
    given: dict[str, ir.Value | None] = {"query": query, "key": key, "value": value}
    given |= {"past_key": cache("past_key", past), "past_value": cache("past_value", "kv_cache_dim")}
    node = ir.node("GroupQueryAttention", list(given.values()), domain="com.microsoft", num_outputs=3)
    return node, given


def found(node: ir.Node, given: dict[str, ir.Value | None]) -> int:
    return head_size_of(node, given, QUERY_HEADS, KV_HEADS)


def product(width: int, *, bits: int | None = None) -> ir.Value:
    """A projection whose output has no shape."""
    if bits is None:
        weight = ir.Value(name="weight", shape=ir.Shape([HIDDEN, width]))
        node = ir.node("MatMul", [tensor("hidden", HIDDEN), weight])
    else:
        attributes = {"K": HIDDEN, "N": width, "bits": bits, "block_size": 32}
        node = ir.node("MatMulNBits", [tensor("hidden", HIDDEN)], attributes, domain="com.microsoft")
    return node.outputs[0]


def numbers(*values: int) -> ir.Value:
    return ir.Value(name="numbers", const_value=ir.tensor(np.array(values, np.int64)))


def behind(op: str, *inputs: ir.Value, output: int = 0, outputs: int = 1, **attributes: Any) -> ir.Value:
    return ir.node(op, inputs, attributes, num_outputs=outputs).outputs[output]


PACKED = (QUERY_HEADS + 2 * KV_HEADS) * SIZE


def with_output(width: int) -> tuple[ir.Node, dict[str, ir.Value | None]]:
    node, given = attention(tensor("query"), tensor("key"), tensor("value"))
    node.outputs[0].shape = ir.Shape(["batch", "sequence", width])
    return node, given


WITNESSES: dict[str, Callable[[], tuple[ir.Node, dict[str, ir.Value | None]]]] = {
    "output": lambda: with_output(QUERY_HEADS * SIZE),
    "query": lambda: attention(tensor("query", QUERY_HEADS * SIZE), tensor("key"), tensor("value")),
    "key": lambda: attention(tensor("query"), tensor("key", KV_HEADS * SIZE), tensor("value")),
    "value": lambda: attention(tensor("query"), tensor("key"), tensor("value", KV_HEADS * SIZE)),
    "packed query": lambda: attention(tensor("query", PACKED)),
    "past_key": lambda: attention(tensor("query"), past=SIZE),
    "weight": lambda: attention(product(PACKED)),
    "quantised weight": lambda: attention(product(PACKED, bits=4)),
    "bias": lambda: attention(behind("Add", product(PACKED, bits=8), tensor("bias"))),
    "cast": lambda: attention(behind("Cast", product(PACKED), to=1)),
    "reshape": lambda: attention(
        behind("Reshape", tensor("x"), numbers(0, -1, QUERY_HEADS * SIZE)), tensor("key"), tensor("value")
    ),
    "split": lambda: attention(
        tensor("query"),
        behind("Split", tensor("x"), numbers(144, 48, 48), output=1, outputs=3, axis=-1),
        tensor("value"),
    ),
}


@pytest.mark.parametrize("name", WITNESSES)
def test_each_witness_alone_is_enough(name: str) -> None:
    assert found(*WITNESSES[name]()) == SIZE


def test_nothing_is_guessed() -> None:
    with pytest.raises(NotUnderstood, match="head size is not known"):
        found(*attention(tensor("query"), tensor("key"), tensor("value")))


@pytest.mark.parametrize(
    "unknown",
    [
        behind("Split", tensor("x"), numbers(144, 48, 48), outputs=3, axis=1),  # of the tokens
        behind("Reshape", tensor("x"), numbers(0, 6, -1)),
        behind("Reshape", tensor("x"), tensor("shape")),
        behind("Transpose", tensor("x", 144), perm=[0, 2, 1]),
        behind("Add", tensor("x", 144), tensor("y", 48)),
        behind("MatMul", tensor("x", HIDDEN), ir.Value(name="vector", shape=ir.Shape([HIDDEN]))),
    ],
    ids=["split of tokens", "reshape to the rest", "reshape unknown", "transposed", "two sums", "vector"],
)
def test_what_does_not_tell_a_width_is_no_witness(unknown: ir.Value) -> None:
    assert channels(unknown) is None


def test_a_long_chain_ends() -> None:
    value = product(PACKED)
    for _ in range(30):
        value = behind("Cast", value, to=1)
    assert channels(value) is None


@pytest.mark.parametrize("past", [SIZE - 8, 10 * SIZE])
def test_two_that_disagree_are_both_named(past: int) -> None:
    with pytest.raises(NotUnderstood, match=rf"packed query has {PACKED} .* size {SIZE}, but its past_key .* {past}"):
        found(*attention(tensor("query", PACKED), past=past))


def test_every_witness_is_heard() -> None:
    """A later one that disagrees is not hidden by earlier ones that agree."""
    node, given = attention(tensor("query", QUERY_HEADS * SIZE), tensor("key", KV_HEADS * SIZE), tensor("value", 32))
    with pytest.raises(NotUnderstood, match="its value has 32 channels"):
        found(node, given)


def test_channels_that_heads_do_not_share_evenly() -> None:
    with pytest.raises(NotUnderstood, match="241 channels, which 10 heads do not share evenly"):
        found(*attention(tensor("query", PACKED + 1)))


@pytest.mark.parametrize("spelling", ["shape", "weight"])
def test_a_layer_that_shares_keys_is_not_read_as_packed(spelling: str) -> None:
    """Without a key and a value, but with queries alone: 144 channels are no ten heads of 14.4 (nor, for other sizes,
    ten whole ones: 240 channels of queries of size 40 would be ten heads of 24)."""
    width = QUERY_HEADS * 40
    assert width == PACKED
    node, given = attention(tensor("query", width) if spelling == "shape" else product(width))
    node.outputs[0].shape = ir.Shape(["batch", "sequence", width])
    with pytest.raises(NotUnderstood, match="keys and values of another layer"):
        found(node, given)
