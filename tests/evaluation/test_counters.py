"""What the operator counts inside a model is what the oracle counts for the same queries, keys and values: all columns.

The oracle (deltallm_onnx.reference) gets what flows into every DeltaAttention node, and its own caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from support.evaluation_models import ELEMENT, ROW, Rewritten
from support.op_session import session
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, VOCABULARY

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.counters import COLUMNS, Counters
from deltallm_onnx.evaluation import evaluate
from deltallm_onnx.reference import delta_attention
from deltallm_onnx.runtime import cache_spec

TOKENS = np.random.default_rng(59).integers(0, VOCABULARY, 61)
BYTES_READ = 7

CONFIGS: dict[str, DeltaConfig] = {
    "float32 row": ROW,
    "float32 element": ELEMENT,
    "float16 row, absolute": ROW.replace(cache_format="float16", row_rule="absolute", threshold=9.0),
    "float32 element, refresh": ELEMENT.replace(refresh=7, sinks=0, window=4),
    "int8 row": ROW.replace(cache_format="int8"),
    "int8 element": ELEMENT.replace(cache_format="int8"),
    "int4 row": ROW.replace(cache_format="int4"),
    "int4 element, refresh": ELEMENT.replace(cache_format="int4", refresh=11),
}


class Watched:
    """A rewritten model in a session that also gives queries, keys and values as they enter each layer's operator."""

    def __init__(self, path: Path, config: DeltaConfig) -> None:
        model = onnx.load(path)
        nodes = [node for node in model.graph.node if node.op_type == "DeltaAttention"]
        self._names = [list(node.input[:3]) for node in nodes]
        for name in {name for names in self._names for name in names}:
            model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        self._session: ort.InferenceSession = session(model.SerializeToString())
        self._outputs = [output.name for output in self._session.get_outputs()]
        dtype, last = cache_spec(config.cache_format, HEAD_SIZE)
        self._caches = {
            f"past_key_values.{layer}.{role}": np.zeros((1, KV_HEADS, 0, last), dtype)
            for layer in range(LAYERS)
            for role in ("key", "value")
        }
        self._length = 0

    def step(self, tokens: np.ndarray) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
        """Of every layer: query, key and value [1, S, H·D], and the statistics."""
        total = self._length + len(tokens)
        feeds = {
            "input_ids": tokens[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self._length, total)[None],
        }
        wanted = {given.name for given in self._session.get_inputs()}
        feeds = {name: value for name, value in feeds.items() if name in wanted}
        out = dict(zip(self._outputs, self._session.run(None, feeds | self._caches), strict=True))
        self._length = total
        self._caches = {name: out[name.replace("past_key_values", "present")] for name in self._caches}
        for layer, names in enumerate(self._names):
            yield [out[name] for name in names], out[f"statistics.{layer}"]


class Oracle:
    """The caches of one layer, in plain numpy."""

    def __init__(self, config: DeltaConfig) -> None:
        self._config = config
        self._past: tuple[Any, Any] = (None, None)
        self._length = 0

    def step(self, qkv: list[np.ndarray]) -> np.ndarray:
        config = self._config
        self._length += qkv[0].shape[1]
        _, *past, statistics = delta_attention(
            *qkv,
            *self._past,
            attention_mask=np.ones((1, self._length), np.int64),
            threshold=config.threshold,
            num_heads=QUERY_HEADS,
            kv_num_heads=KV_HEADS,
            delta_window=config.window,
            sinks=config.sinks,
            granularity=config.granularity,
            row_rule=config.row_rule,
            refresh=config.refresh,
            prefill=config.prefill,
            cache_format=config.cache_format,
        )
        self._past = (past[0], past[1])
        return statistics


def calls(lengths: list[int]) -> Iterator[np.ndarray]:
    begin = 0
    for length in lengths:
        yield TOKENS[begin : begin + length]
        begin += length


@pytest.mark.parametrize("name", CONFIGS)
def test_every_column_of_every_call(rewritten: Rewritten, name: str) -> None:
    """A prompt read exactly, decode steps, a prompt in between, decode steps."""
    config = CONFIGS[name]
    model = Watched(rewritten(config), config)
    oracles = [Oracle(config) for _ in range(LAYERS)]
    total = np.zeros((KV_HEADS, COLUMNS), np.int64)
    for tokens in calls([13, *[1] * 20, 11, *[1] * 17]):
        for oracle, (qkv, counts) in zip(oracles, model.step(tokens), strict=True):
            assert counts.dtype == np.int64
            np.testing.assert_array_equal(counts, oracle.step(qkv))
            total += counts
    assert (total[:, :4] > 0).all(), "something was to be held, and skipped"


@pytest.mark.parametrize("name", ["float32 row", "float32 element", "int8 row", "int4 row"])
def test_an_evaluation_counts_what_the_oracle_counts(rewritten: Rewritten, name: str) -> None:
    """Windows read by one call, against the oracle decoding token by token."""
    config = CONFIGS[name]
    windows = TOKENS[:58].reshape(2, 29)
    found = evaluate(rewritten(config, statistics=False), None, windows, speed=False)
    expected, read, in_use = Counters(), 0.0, 0
    for window in windows:
        model, oracles = Watched(rewritten(config), config), [Oracle(config) for _ in range(LAYERS)]
        for t, token in enumerate(window, 1):
            counts = [oracle.step(qkv) for oracle, (qkv, _) in zip(oracles, model.step(np.array([token])), strict=True)]
            decoded = 1 if t == len(window) else 0
            expected += Counters.from_statistics(counts, cached_tokens=t, decoded_tokens=decoded)
        read += sum(int(layer[:, BYTES_READ].sum()) for layer in counts) / len(windows)
        in_use += expected.kv_bytes
    assert found.cache.raw == expected
    assert found.cache.kv_bytes_read == read
    assert found.cache.kv_bytes_per_token == in_use / (windows.size * LAYERS)
    data = found.to_dict()
    for counter in ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity"):
        assert data[counter] == getattr(expected, counter) > 0
