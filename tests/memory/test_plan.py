"""The parts of the plan against what can be counted by hand, or asked of a cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.memory_models import HIDDEN, VOCABULARY, WIDE, gated, projection
from support.tiny_decoder import VOCABULARY as TINY_VOCABULARY
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.dense_model import open_dense_model
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.memory.activations import call_memory
from deltallm_onnx.memory.call_shapes import CallSizes
from deltallm_onnx.memory.plan import plan_memory
from deltallm_onnx.memory.weights import weight_memory
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.passes.pin_cache_shapes import fix_cache_rows
from deltallm_onnx.runtime import DecoderModel

CALL = CallSizes(batch=3, new_tokens=7, total_tokens=19)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("dense"))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("context", [1, 16, 17, 219])
@pytest.mark.parametrize("cache_format", ["float32", "float16", "int8", "int4", "dense"])
def test_caches_are_those_that_a_run_allocates(
    dense: Path, tmp_path: Path, cache_format: str, context: int, batch: int
) -> None:
    path = dense
    if cache_format != "dense":
        path = tmp_path / "delta.onnx"
        config = DeltaConfig(threshold=0.7, window=9, sinks=1, cache_format=cache_format)  # type: ignore[arg-type]  # one of its names
        rewrite(dense, path, config)
    model = DecoderModel(path)
    cache = model.new_cache(batch=batch, limit=context)
    tokens = np.random.default_rng(5).integers(0, TINY_VOCABULARY, (batch, context))
    for part in np.split(tokens, [min(context, 5), min(context, 140)], axis=1):
        if part.shape[1]:
            model.step(part, cache)
    plan = plan_memory(path, context, batch=batch)
    assert cache.length == context
    assert plan.cache_bytes == cache.bytes_allocated
    # Buffers grow one after the other; presents of a dense model are all there beside their pasts.
    copied = cache.bytes_allocated if cache_format == "dense" else cache.bytes_allocated // len(model.signature.caches)
    assert plan.cache_copy_bytes == copied


def test_caches_of_fixed_rows(dense: Path, tmp_path: Path) -> None:
    rows = 150
    path = tmp_path / "fixed.onnx"
    opened = open_dense_model(dense)
    rewrite_model(opened.model, DeltaConfig(threshold=0.7, window=9, sinks=1, cache_format="int4"))
    fix_cache_rows(opened.model, rows)
    ir.save(opened.model, path)
    plan = plan_memory(path, 20)
    assert plan.cache_bytes == DecoderModel(path).new_cache().bytes_allocated
    assert plan.cache_copy_bytes == 0
    with pytest.raises(DeltaLLMError, match=rf"caches of {rows} rows, and 4000 tokens need \d+: make the text shorter"):
        plan_memory(path, 4000)


@pytest.mark.parametrize("annotated", [True, False], ids=["annotated", "by inference"])
def test_activations_are_what_is_alive_at_once(annotated: bool) -> None:
    found = call_memory(gated(annotated=annotated), CALL)
    tokens = CALL.batch * CALL.new_tokens
    assert found.logits_shape == (CALL.batch, CALL.new_tokens, VOCABULARY)
    assert found.logits == tokens * VOCABULARY * 4
    # At silu: hidden, gate, up, sigmoid and silu; at the product gate and sigmoid are gone.
    assert found.activations == tokens * (HIDDEN + 4 * WIDE) * 4


def test_logits_of_the_last_token_and_of_half_precision() -> None:
    model = gated()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    assert call_memory(model, CALL).logits == CALL.batch * VOCABULARY * 4
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    # What the runtime hands out is float32: both are there.
    assert call_memory(model, CALL).logits == CALL.batch * VOCABULARY * (2 + 4)


def test_attention_without_cache_layout_has_all_scores_at_once(dense: Path) -> None:
    model = onnx.load(dense)
    # 6 query heads; everything else of this model is far smaller.
    scores = 2 * 6 * 101 * 203 * 4
    found = call_memory(model, CallSizes(batch=2, new_tokens=101, total_tokens=203))
    assert scores < found.activations < 1.6 * scores
    assert found.node.startswith("attention.")


def test_weights_are_counted_as_they_are_stored() -> None:
    found = weight_memory(gated())
    parameters = VOCABULARY * HIDDEN + 3 * HIDDEN * WIDE
    assert found.by_type == {"float32": 4 * parameters}
    assert (found.inside, found.data_files) == (4 * parameters, 0)
    # The head is the embedding turned: a second copy of it, and the largest matrix.
    assert found.laid_out == found.largest == 4 * VOCABULARY * HIDDEN
    assert found.resident == 2 * 4 * parameters + 4 * VOCABULARY * HIDDEN


def test_weights_in_data_files_are_there_once(tmp_path: Path) -> None:
    path = tmp_path / "outside.onnx"
    onnx.save(gated(), path, save_as_external_data=True, size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    found = weight_memory(model)
    assert (found.data_files, found.inside) == (4 * (VOCABULARY * HIDDEN + 3 * HIDDEN * WIDE), 0)
    assert found.resident == found.stored + 4 * VOCABULARY * HIDDEN
    # The head reads the table too, so all of it is there as soon as the model is open; rows alone are read later.
    assert found.looked_up == 0
    (turn,) = (node for node in model.graph.node if node.op_type == "Transpose")
    turn.input[0] = "w_down"
    assert weight_memory(model).looked_up == 4 * VOCABULARY * HIDDEN


def test_half_precision_weights_are_widened_once() -> None:
    model = gated()
    (up,) = (tensor for tensor in model.graph.initializer if tensor.name == "w_up")
    up.CopyFrom(numpy_helper.from_array(np.ones((HIDDEN, WIDE), np.float16), "w_up_half"))
    model.graph.node.insert(0, helper.make_node("Cast", ["w_up_half"], ["w_up"], to=TensorProto.FLOAT))
    before, found = weight_memory(gated()), weight_memory(model)
    assert found.stored == before.stored - 2 * HIDDEN * WIDE
    # The float32 copy takes the place of the half precision one, which nothing else reads.
    assert found.laid_out - before.laid_out == 2 * HIDDEN * WIDE


@pytest.mark.parametrize(("level", "tied"), [(0, False), (4, False), (0, True), (4, True)])
def test_int4_weights(level: int, tied: bool) -> None:
    codes, scales = 48 * 64 // 2, 48 * 2 * 4
    found = weight_memory(projection(accuracy_level=level, tied=tied))
    assert found.by_type == {"uint8": codes, "float32": scales}
    per_node = 2 * scales if level == 4 else 0
    assert found.laid_out == per_node * (1 + tied) + (codes if tied else 0)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ({"context": 0}, "context is 0"),
        ({"context": 9, "batch": -2}, "batch is -2"),
        ({"context": 9, "prompt_chunk": 0}, "prompt-chunk is 0"),
        ({"context": 9, "prompt": 0}, "prompt is 0"),
    ],
)
def test_numbers_below_one(dense: Path, numbers: dict[str, int], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence + ": give a whole number of at least 1"):
        plan_memory(dense, **numbers)


def test_the_call_is_no_longer_than_the_prompt(dense: Path) -> None:
    assert plan_memory(dense, 100).call_tokens == 100
    assert plan_memory(dense, 100, prompt=30).call_tokens == 30
    assert plan_memory(dense, 100, prompt=30, prompt_chunk=8).call_tokens == 8
    assert plan_memory(dense, 100, prompt_chunk=1000).call_tokens == 100
