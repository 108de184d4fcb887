"""Models whose caches have a fixed number of rows, or a name for their head size: onnxruntime-genai's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, VOCABULARY

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.dense_model import open_dense_model
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import PackedSizes
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.passes.pin_cache_shapes import fix_cache_rows
from deltallm_onnx.runtime import DecoderModel

CONFIG = DeltaConfig(threshold=0.7, window=9, sinks=1, cache_format="int4")
TOKENS = np.random.default_rng(7).integers(0, VOCABULARY, (1, 190))
LIMIT = 150


def fixed(dense_path: Path, out: Path, rows: int) -> Path:
    dense = open_dense_model(dense_path)
    rewrite_model(dense.model, CONFIG)
    fix_cache_rows(dense.model, rows)
    ir.save(dense.model, out)
    return out


def test_a_buffer_of_fixed_size_computes_what_a_growing_one_does(dense_path: Path, tmp_path: Path) -> None:
    rows = PackedSizes("int4", HEAD_SIZE, CONFIG.sinks, CONFIG.window).rows_needed(LIMIT)
    model = DecoderModel(fixed(dense_path, tmp_path / "fixed.onnx", rows))
    peer = DecoderModel(rewrite(dense_path, tmp_path / "grown.onnx", CONFIG, statistics=False).path)
    caches = model.new_cache(), peer.new_cache()
    allocated = caches[0].bytes_allocated
    for part in np.split(TOKENS[:, :LIMIT], [40, 41, 42, 100], axis=1):
        (found, _), (expected, _) = model.step(part, caches[0]), peer.step(part, caches[1])
        np.testing.assert_array_equal(found, expected)
        assert caches[0].bytes_allocated == allocated
    assert {caches[0].capacity(tensor) for tensor in model.signature.caches} == {rows}


def test_more_tokens_than_there_is_room_for(dense_path: Path, tmp_path: Path) -> None:
    sizes = PackedSizes("int4", HEAD_SIZE, CONFIG.sinks, CONFIG.window)
    rows = sizes.rows_needed(LIMIT)
    model = DecoderModel(fixed(dense_path, tmp_path / "fixed.onnx", rows))
    cache = model.new_cache()
    model.step(TOKENS[:, :20], cache)
    needed = sizes.rows_needed(190 + 300)
    with pytest.raises(DeltaLLMError, match=rf"caches of {rows} rows, and 490 tokens need {needed}: make the text"):
        model.step(np.concatenate([TOKENS, TOKENS, TOKENS], axis=1)[:, :470], cache)


def test_a_head_size_with_a_name(in_place_path: Path, tmp_path: Path) -> None:
    """The builder of onnxruntime-genai 0.18 writes none; the output of the attention tells it."""
    model = onnx.load(in_place_path)
    caches = [v for v in (*model.graph.input, *model.graph.output) if v.name.startswith(("past", "present"))]
    for value in caches:
        value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    path = tmp_path / "named.onnx"
    onnx.save(model, path)
    with pytest.raises(DeltaLLMError, match="the second and the last fixed"):
        DecoderModel(path)
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            heads = next(a.i for a in node.attribute if a.name == "num_heads")
            shape = ["batch", "sequence", heads * HEAD_SIZE]
            model.graph.value_info.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, shape)
            )
    onnx.save(model, path)
    named, numbered = DecoderModel(path), DecoderModel(in_place_path)
    assert {(t.kv_heads, t.last) for t in named.signature.caches} == {(KV_HEADS, HEAD_SIZE)}
    found, _ = named.step(TOKENS, named.new_cache())
    expected, _ = numbered.step(TOKENS, numbered.new_cache())
    np.testing.assert_array_equal(found, expected)
