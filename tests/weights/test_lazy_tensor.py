"""Tensors made when written: the same bytes whole or in pieces, and never more than a piece in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from deltallm_onnx.weights.lazy_tensor import PiecewiseTensor


def ramp(rows: int, columns: int, step: int, dtype: Any) -> Iterator[NDArray[Any]]:
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        yield np.arange(begin * columns, end * columns).reshape(-1, columns).astype(dtype)


@pytest.mark.parametrize("dtype", [ir.DataType.UINT8, ir.DataType.FLOAT16, ir.DataType.FLOAT])
def test_pieces_are_the_tensor(tmp_path: Path, dtype: ir.DataType) -> None:
    tensor = PiecewiseTensor(lambda: ramp(7, 5, 3, dtype.numpy()), dtype, (7, 5), name="ramp")
    expected = np.arange(35).reshape(7, 5).astype(dtype.numpy())
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert tensor.tobytes() == expected.tobytes()
    with (tmp_path / "data").open("wb") as file:
        tensor.tofile(file)
    assert (tmp_path / "data").read_bytes() == expected.tobytes()


def test_bytes_are_little_endian_whatever_the_pieces_are(tmp_path: Path) -> None:
    piece = np.arange(6, dtype=">f4")[::-1]
    with (tmp_path / "data").open("wb") as file:
        PiecewiseTensor(lambda: [piece], ir.DataType.FLOAT, (6,)).tofile(file)
    assert (tmp_path / "data").read_bytes() == piece.astype("<f4").tobytes()


def test_written_with_a_model_it_takes_the_memory_of_a_piece(tmp_path: Path) -> None:
    rows, columns = 4000, 1000
    tensor = PiecewiseTensor(lambda: ramp(rows, columns, 100, np.float32), ir.DataType.FLOAT, (rows, columns))
    value = ir.Value(name="weight", const_value=tensor, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 23})
    tracemalloc.start()
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx", format="protobuf", external_data="model.data")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < tensor.nbytes / 4
    stored = ir.load(tmp_path / "model.onnx").graph.initializers["weight"].const_value
    assert stored is not None
    assert int(stored.numpy()[-1, -1]) == rows * columns - 1


@pytest.mark.parametrize("rows", [6, 8])
def test_pieces_of_another_size_are_a_bug(tmp_path: Path, rows: int) -> None:
    tensor = PiecewiseTensor(lambda: ramp(rows, 5, 3, np.float32), ir.DataType.FLOAT, (7, 5), name="ramp")
    with (tmp_path / "data").open("wb") as file, pytest.raises(RuntimeError, match="ramp"):
        tensor.tofile(file)
    with pytest.raises((RuntimeError, ValueError)):
        tensor.numpy()
