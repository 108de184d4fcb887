import io
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deltallm_onnx.weights import transposed
from deltallm_onnx.weights.transposed import TransposedWeight


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("block_bytes", [1, 24, 100, 10**6])
def test_blocks_add_up_to_the_transpose(
    dtype: type, block_bytes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transposed, "PIECE_BYTES", block_bytes)
    weight = np.random.default_rng(2).integers(-90, 90, (6, 11)).astype(dtype)
    stored = TransposedWeight(ir.tensor(weight))
    assert list(stored.shape.numpy()) == [11, 6]
    assert stored.nbytes == weight.nbytes
    np.testing.assert_array_equal(stored.numpy(), weight.T)
    in_memory = io.BytesIO()
    stored.tofile(in_memory)
    assert in_memory.getvalue() == weight.T.tobytes() == stored.tobytes()
    with (tmp_path / "weight").open("wb") as file:
        file.write(b"ahead")
        stored.tofile(file)
    assert (tmp_path / "weight").read_bytes() == b"ahead" + weight.T.tobytes()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1)])
def test_empty_and_single(shape: tuple[int, int]) -> None:
    file = io.BytesIO()
    TransposedWeight(ir.tensor(np.ones(shape, np.float32))).tofile(file)
    assert file.getvalue() == np.ones(shape, np.float32).T.tobytes()
