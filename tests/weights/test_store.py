"""Whole models: which weights are stored how, and that the model computes with exactly what is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from support.tiny_models import exported, shared_directory
from support.weight_models import (
    HIDDEN,
    LEFT,
    MATRICES,
    VOCABULARY,
    dequantised,
    initializers,
    is_float,
    mixed_feeds,
    mixed_model,
    run_standard,
    tied_model,
    with_weights,
)

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.report import WeightsReport
from deltallm_onnx.weights.store import refuse_quantised, store_weights

CODED = [
    WeightFormat("int4", accuracy_level=0),
    WeightFormat("int8", block_size=16, accuracy_level=0),
    WeightFormat("int4", block_size=64, symmetric=False),
    WeightFormat("int8", symmetric=False, accuracy_level=0),
]


def stored(model: onnx.ModelProto, weight_format: WeightFormat) -> tuple[onnx.ModelProto, WeightsReport]:
    made = ir.from_proto(model)
    report = store_weights(made, weight_format, "it")
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto)
    return proto, report()


@pytest.mark.parametrize("weight_format", CODED, ids=str)
def test_every_form_of_a_weight(weight_format: WeightFormat) -> None:
    model, feeds = mixed_model(), mixed_feeds()
    made, report = stored(model, weight_format)
    matrices = dequantised(made)
    assert {name: array.shape for name, array in matrices.items()} == MATRICES
    expected, got = run_standard(with_weights(model, matrices), feeds), run_standard(made, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5, rtol=0, err_msg=name)
    assert float(np.abs(got["logits"] - run_standard(model, feeds)["logits"]).max()) > 1e-3
    assert {matrix.name for matrix in report.stored} == set(MATRICES)
    reasons = {weight.name: weight.reason for weight in report.left}
    assert set(reasons) == set(LEFT)
    assert all(word in reasons[name] for name, word in LEFT.items()), reasons
    # Nothing of the float matrices is left, and what was not touched is as it was.
    kept = {name for name, tensor in initializers(made).items() if is_float(tensor) and len(tensor.dims) > 1}
    assert {name for name in kept if not name.endswith("_scales")} == set(LEFT)


@pytest.mark.parametrize("weight_format", CODED, ids=str)
def test_the_report_is_that_of_the_stored_tensors(weight_format: WeightFormat) -> None:
    model = mixed_model(2)
    made, report = stored(model, weight_format)
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model).items()}
    squares = weight_squares = 0.0
    for matrix in report.stored:
        values = dequantised(made)[matrix.name]
        weight = arrays[matrix.name] if arrays[matrix.name].shape == values.shape else arrays[matrix.name].T
        if matrix.name in {"square", "twice"}:  # square, and stored as [K, N]
            weight = arrays[matrix.name].T
        error, size = ((values - weight) ** 2).sum(), (weight.astype(np.float64) ** 2).sum()
        assert matrix.error.relative_rms == pytest.approx(np.sqrt(error / size), rel=1e-5), matrix.name
        assert matrix.parameters == values.size
        tensors = [t for name, t in initializers(made).items() if name.startswith(f"{matrix.name}_")]
        assert matrix.stored_bytes == sum(len(tensor.raw_data) for tensor in tensors)
        squares, weight_squares = squares + error, weight_squares + size
    assert report.relative_rms == pytest.approx(np.sqrt(squares / weight_squares), rel=1e-5)
    worst = max(report.stored, key=lambda matrix: matrix.error.relative_rms)
    assert report.worst[0] == worst
    assert report.to_dict()["relative_rms"] == report.relative_rms
    assert f"{report.relative_rms:.2%} in total; largest: {worst.name}" in report.lines[1]
    assert "5 weights left as they were (50.2 kB in float32): experts, a stack" in report.lines[2]


def test_tied_embeddings_are_stored_once() -> None:
    made, _ = stored(mixed_model(), WeightFormat("int4"))
    lookup = next(node for node in made.graph.node if node.op_type == "GatherBlockQuantized")
    head = next(node for node in made.graph.node if "logits" in node.output)
    assert head.op_type == "MatMulNBits"
    assert lookup.input[0] == head.input[1] == "embed_Q4"
    codes = initializers(made)["embed_Q4"]
    assert list(codes.dims) == [VOCABULARY, -(-HIDDEN // 32), 16]
    assert {attribute.name: attribute.i for attribute in head.attribute}["accuracy_level"] == 4


@pytest.mark.parametrize("columns_first", [True, False])
@pytest.mark.parametrize("name", ["int4", "float16"])
def test_tied_embeddings_of_either_exporter(name: str, *, columns_first: bool) -> None:
    """Every row of the table is looked up, and multiplied with."""
    model, feeds = tied_model(columns_first=columns_first), {"input_ids": np.arange(VOCABULARY)[None]}
    made, report = stored(model, WeightFormat(name, accuracy_level=0 if name == "int4" else None))  # type: ignore[arg-type]
    assert not report.left
    assert [node.op_type for node in made.graph.node].count("Transpose") == (name == "float16")
    table, logits = run_standard(made, feeds).values()
    if name == "int4":
        np.testing.assert_allclose(table[0], dequantised(made)["head"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits[0], table[0].astype(np.float64) @ table[0].T, rtol=0, atol=1e-4)
    weights = numpy_helper.to_array(initializers(model)["head"])
    error = table[0] - (weights.T if columns_first else weights)
    assert report.relative_rms == pytest.approx(np.sqrt((error**2).sum() / (weights**2).sum()), rel=1e-3)


def test_int8_activations_are_close_to_float_ones() -> None:
    """Level 4 rounds the activations to 1 of 127 of the largest in their block."""
    feeds = mixed_feeds()
    exact = run_standard(stored(mixed_model(), WeightFormat("int8", accuracy_level=0))[0], feeds)["logits"]
    fast = run_standard(stored(mixed_model(), WeightFormat("int8"))[0], feeds)["logits"]
    difference = float(np.abs(fast - exact).max()) / float(np.abs(exact).max())
    assert 0 < difference < 0.03


def test_float16() -> None:
    model, feeds = mixed_model(), mixed_feeds()
    made, report = stored(model, WeightFormat("float16"))
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(model).items()}
    halved = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in made.graph.initializer
        if tensor.data_type == TensorProto.FLOAT16
    }
    assert set(halved) == {*MATRICES, "experts"} == {matrix.name for matrix in report.stored}
    for name, array in halved.items():
        np.testing.assert_array_equal(array, arrays[name].astype(np.float16))
    rounded = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in rounded.graph.initializer:
        if tensor.name in halved:
            tensor.CopyFrom(numpy_helper.from_array(halved[tensor.name].astype(np.float32), tensor.name))
    expected, got = run_standard(rounded, feeds), run_standard(made, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5, rtol=0, err_msg=name)
    # The table is looked up as it is stored: a Cast of it would be worked out when the model is opened.
    lookup = next(node for node in made.graph.node if node.op_type == "Gather" and "input_ids" in node.input)
    assert lookup.input[0] == "embed"
    error = sum(((halved[n].astype(np.float64) - arrays[n]) ** 2).sum() for n in halved)
    size = sum((arrays[n].astype(np.float64) ** 2).sum() for n in halved)
    assert report.relative_rms == pytest.approx(np.sqrt(error / size), rel=1e-4)


def test_what_float16_cannot_hold_is_refused() -> None:
    model = mixed_model()
    tensor = initializers(model)["up"]
    array = numpy_helper.to_array(tensor).copy()
    array[4, 5] = -7e4
    tensor.CopyFrom(numpy_helper.from_array(array, "up"))
    made = ir.from_proto(model)
    store_weights(made, WeightFormat("float16"), "it")
    with pytest.raises(DeltaLLMError, match=r"up holds 7e\+04, and float16 ends at 65504"):
        made.graph.initializers["up"].const_value.tobytes()  # type: ignore[union-attr]  # it was made with data


def test_models_without_weights_to_store_are_refused() -> None:
    made, _ = stored(mixed_model(), WeightFormat("int4"))
    again = ir.from_proto(made)
    with pytest.raises(DeltaLLMError, match=r"it are quantised already \(7 MatMulNBits, 1 GatherBlockQuantized\)"):
        refuse_quantised(again, "it")
    with pytest.raises(DeltaLLMError, match="it has no float32 weight matrix to store as int8"):
        store_weights(again, WeightFormat("int8"), "it")
    refuse_quantised(ir.from_proto(mixed_model()), "it")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("name", ["int4", "int8"])
def test_exported_models_compute_with_what_is_stored(
    architecture: str, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """MatMul after a stored transpose, GPT-2's Gemm with tied embeddings, and a mixture of experts."""
    dense = exported(architecture, shared_directory(tmp_path_factory))
    model = onnx.load(dense)
    made, report = stored(model, WeightFormat(name, accuracy_level=0))  # type: ignore[arg-type]
    matrices = dequantised(made)
    lookups = [node for node in made.graph.node if node.op_type == "GatherBlockQuantized"]
    assert len(lookups) == 1
    table = lookups[0].input[0].rsplit("_Q", 1)[0]
    if table not in matrices:  # not tied: no product says how to read it
        matrices[table] = table_values(made, lookups[0])
    assert set(matrices) == {matrix.name for matrix in report.stored}
    expected = logits(with_weights(model, matrices))
    np.testing.assert_allclose(logits(made), expected, atol=1e-4, rtol=0)
    assert np.abs(logits(model) - expected).max() > 1e-3


def table_values(model: onnx.ModelProto, lookup: onnx.NodeProto) -> np.ndarray:
    """All rows of a quantised embedding, looked up by ONNX Runtime from what it is given."""
    given = initializers(model)
    codes, scales = given[lookup.input[0]], given[lookup.input[0].rsplit("_Q", 1)[0] + "_scales"]
    bits = next(attribute.i for attribute in lookup.attribute if attribute.name == "bits")
    values = numpy_helper.to_array(codes)
    numbers = values if bits == 8 else np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
    table = (numbers.astype(np.float64) - 2 ** (bits - 1)) * numpy_helper.to_array(scales)[:, :, None]
    return table.reshape(len(values), -1)[:, :48]


def logits(model: onnx.ModelProto) -> np.ndarray:
    """Of a prompt of two rows, one of them padded."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(8)
    mask = np.ones((2, 9), np.int64)
    mask[1, :3] = 0
    feeds = {
        "input_ids": random.integers(3, 83, (2, 9)),
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(1) - 1, 0),
    }
    for value in session.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((2, value.shape[1], 0, value.shape[3]), np.float32)
    (result,) = session.run(["logits"], feeds)
    return np.asarray(result)[mask.astype(bool)]


def test_files(tmp_path: Path) -> None:
    """Through a file with external data, as a conversion writes it, nothing changes."""
    made = ir.from_proto(mixed_model())
    report = store_weights(made, WeightFormat("int4"), "it")
    with pytest.raises(RuntimeError, match="has not been written"):
        report()
    ir.save(made, tmp_path / "model.onnx", format="protobuf", external_data="model.data", size_threshold_bytes=0)
    direct, again = stored(mixed_model(), WeightFormat("int4"))
    assert report() == again
    loaded = onnx.load(tmp_path / "model.onnx")
    for name, tensor in initializers(direct).items():
        np.testing.assert_array_equal(numpy_helper.to_array(initializers(loaded)[name]), numpy_helper.to_array(tensor))
