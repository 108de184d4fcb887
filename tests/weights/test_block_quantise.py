"""Codes, scales and zero points: the bytes of ONNX Runtime's own tool, and errors that can be recomputed."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from support.weight_models import bits_of, initializers

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights import block_quantise
from deltallm_onnx.weights.block_quantise import BlockQuantisedMatrix, dequantise, quantise
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.store import store_weights
from deltallm_onnx.weights.transposed import TransposedWeight


def products(*shapes: tuple[int, int]) -> onnx.ModelProto:
    """One MatMul per shape [K, N], side by side."""
    random = np.random.default_rng(3)
    nodes, inputs, outputs, weights = [], [], [], []
    for index, (K, N) in enumerate(shapes):
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"w{index}"], [f"y{index}"], name=f"node{index}"))
        inputs.append(helper.make_tensor_value_info(f"x{index}", 1, ["batch", "sequence", K]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", 1, ["batch", "sequence", N]))
        values = random.standard_normal((K, N)) * random.uniform(0.01, 2, (K, 1))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"w{index}"))
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


#: Every format but the one that is refused (test_formats.py).
CODED = [
    WeightFormat(name, block_size, symmetric, level)
    for name, block_size, symmetric, level in itertools.product(
        ("int4", "int8"), (16, 32, 64, 128, 256), (True, False), (0, 4)
    )
    if symmetric or name == "int8" or level == 0
]


@pytest.mark.parametrize("weight_format", CODED, ids=str)
def test_the_bytes_are_those_of_onnxruntimes_tool(weight_format: WeightFormat) -> None:
    model = products((64, 37), (50, 83), (300, 11), (1, 5), (31, 1))
    tool = MatMulNBitsQuantizer(
        onnx.ModelProto.FromString(model.SerializeToString()),
        bits=weight_format.bits,
        block_size=weight_format.block_size,
        is_symmetric=weight_format.symmetric,
        accuracy_level=weight_format.accuracy_level,
    )
    tool.process()
    ours = ir.from_proto(model)
    store_weights(ours, weight_format, "it")
    made, expected = ir.to_proto(ours), tool.model.model
    assert sorted(initializers(made)) == sorted(initializers(expected))
    for key, tensor in initializers(expected).items():
        np.testing.assert_array_equal(
            numpy_helper.to_array(initializers(made)[key]), numpy_helper.to_array(tensor), err_msg=key, strict=True
        )
    for node, reference in zip(made.graph.node, expected.graph.node, strict=True):
        assert (node.op_type, node.domain, node.name) == (reference.op_type, reference.domain, reference.name)
        assert (list(node.input), list(node.output)) == (list(reference.input), list(reference.output))
        attributes = {helper.printable_attribute(attribute) for attribute in node.attribute}
        assert attributes == {helper.printable_attribute(attribute) for attribute in reference.attribute}


@pytest.mark.parametrize("columns_first", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("piece", [1, 200, 2**20])
def test_pieces_and_orientation_change_nothing(
    monkeypatch: pytest.MonkeyPatch, *, columns_first: bool, transposed: bool, piece: int
) -> None:
    monkeypatch.setattr(block_quantise, "_PIECE_WEIGHTS", piece)
    rows = np.random.default_rng(4).standard_normal((23, 50)).astype(np.float32)
    weight_format = WeightFormat("int4", symmetric=False)
    codes, scales, zero_points = quantise(rows, weight_format)
    assert zero_points is not None
    stored = rows.T if columns_first else rows
    tensor = TransposedWeight(ir.tensor(np.ascontiguousarray(stored.T))) if transposed else ir.tensor(stored.copy())
    made = BlockQuantisedMatrix(tensor, "weight", weight_format, columns_first=columns_first)
    assert made.zero_points is not None
    assert made.shape == (23, 50)
    for given, expected in ((made.zero_points, zero_points), (made.codes, codes), (made.scales, scales)):
        np.testing.assert_array_equal(given.numpy(), expected)
        np.testing.assert_array_equal(given.numpy(), expected)  # and once more
    assert made.error is not None
    restored = dequantise(codes, scales, zero_points, weight_format)[:, :50]
    expected_error = np.linalg.norm(restored - rows) / np.linalg.norm(rows)
    assert made.error.relative_rms == pytest.approx(expected_error, rel=1e-5)


@pytest.mark.parametrize("name", ["int4", "int8"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_is_that_of_what_is_stored(name: str, *, symmetric: bool) -> None:
    rows = np.random.default_rng(5).standard_normal((29, 70)).astype(np.float32)
    weight_format = WeightFormat(name, block_size=16, symmetric=symmetric, accuracy_level=0)  # type: ignore[arg-type]
    made = BlockQuantisedMatrix(ir.tensor(rows), "weight", weight_format, columns_first=False)
    scales = made.scales.numpy().astype(np.float64)
    zero = np.full(scales.shape, 2 ** (weight_format.bits - 1))
    if made.zero_points is not None:
        zero = bits_of(made.zero_points.numpy(), weight_format.bits)[:, : scales.shape[1]]
    values = (bits_of(made.codes.numpy(), weight_format.bits) - zero[:, :, None]) * scales[:, :, None]
    values = values.reshape(29, -1)[:, :70]
    expected = np.sqrt(((values - rows) ** 2).sum() / (rows.astype(np.float64) ** 2).sum())
    assert made.error is not None
    assert made.error.relative_rms == pytest.approx(expected, rel=1e-5)
    # Rounding to one of 2ᵇ levels: a uniform error of a step, whose root mean square is 1/√12 of it.
    assert expected == pytest.approx(np.sqrt((scales**2).mean() / 12) / rows.std(), rel=0.1)
    restored = dequantise(made.codes.numpy(), made.scales.numpy(), None, weight_format) if symmetric else values
    np.testing.assert_allclose(restored[:, :70], values, rtol=1e-6, atol=1e-7)


def test_zeros_have_no_error() -> None:
    made = BlockQuantisedMatrix(
        ir.tensor(np.zeros((3, 40), np.float32)), "w", WeightFormat("int4"), columns_first=False
    )
    made.codes.tofile(io.BytesIO())
    assert made.error is not None
    assert made.error.relative_rms == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    rows = np.ones((5, 40), np.float32)
    rows[3, 7] = value
    made = BlockQuantisedMatrix(ir.tensor(rows), "layer.weight", WeightFormat("int8"), columns_first=False)
    with pytest.raises(DeltaLLMError, match=r"layer\.weight holds numbers that are not finite"):
        made.codes.tofile(io.BytesIO())


def test_writing_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    rows = np.random.default_rng(6).standard_normal((6000, 512)).astype(np.float32)
    made = BlockQuantisedMatrix(TransposedWeight(ir.tensor(rows)), "w", WeightFormat("int4"), columns_first=True)
    with (tmp_path / "codes").open("wb") as file:
        tracemalloc.start()
        made.codes.tofile(file)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (tmp_path / "codes").stat().st_size == rows.size / 2
    # A quarter of a million weights with all that is made of them, and the scales: one per 32 weights.
    assert peak < 12e6 < rows.nbytes, peak
