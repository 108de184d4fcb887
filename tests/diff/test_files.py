"""Files: models larger than memory would like, weights that are never read, and input that is no model."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.layered_models import layered_model
from support.random_models import in_a_branch, in_a_function, random_model

from deltallm_onnx.diff import Detail, diff
from deltallm_onnx.errors import DeltaLLMError

_GIB = 1 << 30


def _large(path: Path, *, rows: int = 1 << 16, offset: int = 0, data: str = "large.data") -> Path:
    """A model of 3 GiB whose data file is a hole: it takes no disk, and reading it would take 3 GiB of memory."""
    width = 3 * _GIB // 4 // (1 << 16)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[rows, width], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", data), ("offset", offset), ("length", 4 * rows * width)):
        weight.external_data.add(key=key, value=str(value))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", rows])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["B", width])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["z"])], "g", [x], [z], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    (path.parent / data).touch()
    os.truncate(path.parent / data, 3 * _GIB + offset)
    return path


def test_model_over_2_gib_is_compared_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensor: ir.ExternalTensor) -> None:
        raise AssertionError(f"{tensor.name} was read")

    for method in ("numpy", "tobytes", "_load"):
        monkeypatch.setattr(ir.ExternalTensor, method, refuse)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = _large(tmp_path / "a" / "m.onnx"), _large(tmp_path / "b" / "m.onnx")
    assert diff(a, b).is_empty
    assert diff(str(a), ir.load(b)).is_empty
    c = _large(tmp_path / "b" / "other.onnx", rows=1 << 15)
    (change,) = diff(a, c).select("initializers")
    assert change.details == (Detail("type", "float32[65536,12288]", "float32[32768,12288]"),)


def test_missing_data_file_does_not_matter(tmp_path: Path) -> None:
    a = _large(tmp_path / "m.onnx")
    (tmp_path / "large.data").unlink()
    assert diff(a, a).is_empty


def test_other_place_in_the_same_file_is_other_data(tmp_path: Path) -> None:
    a, b = _large(tmp_path / "a.onnx"), _large(tmp_path / "b.onnx", offset=4096)
    (change,) = diff(a, b).changes
    assert (change.section, change.details) == ("initializers", (Detail("offset", "0", "4096"),))


def test_place_in_another_file_says_nothing_about_the_data(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    a, b = _large(tmp_path / "a.onnx"), _large(tmp_path / "b" / "b.onnx", offset=4096)
    assert diff(a, b).is_empty


def test_declared_length_that_does_not_fit_the_type_is_told() -> None:
    a, b = layered_model(2, delta=True, external="d"), layered_model(2, delta=True, external="d")
    entry = next(e for e in b.graph.initializer[0].external_data if e.key == "length")
    entry.value = "7"
    (change,) = diff(a, b).changes
    assert change.details == (Detail("storage", "d", "d, 7 bytes"),)


@pytest.mark.filterwarnings("ignore:The onnxtxt format is experimental")
@pytest.mark.parametrize("suffix", ["onnx", "onnxtxt", "textproto", "json"])
def test_every_format_onnx_knows(tmp_path: Path, suffix: str) -> None:
    model = layered_model(2, delta=False)
    path = tmp_path / f"m.{suffix}"
    if suffix == "onnxtxt":
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 21]> g (float[3] x) => (float[3] y) { y = Abs(x) }'
        )
    onnx.save(model, path)
    assert diff(path, model).is_empty


def test_path_proto_and_ir_are_the_same_model(tmp_path: Path) -> None:
    proto = layered_model(3, delta=False)
    onnx.save(proto, tmp_path / "m.onnx")
    sources = [tmp_path / "m.onnx", str(tmp_path / "m.onnx"), proto, ir.from_proto(proto), ir.load(tmp_path / "m.onnx")]
    assert all(diff(a, b).is_empty for a in sources for b in sources)


# -- refusals --------------------------------------------------------------------------------------------------------


def _refusal(a: object, b: object) -> str:
    with pytest.raises(DeltaLLMError) as caught:
        diff(a, b)  # type: ignore[arg-type]
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    good = layered_model(2, delta=False)
    assert _refusal(tmp_path / "none.onnx", good) == (
        f"There is no file {tmp_path / 'none.onnx'}: give the path of an ONNX model."
    )
    assert _refusal(good, tmp_path) == f"{tmp_path} is a directory: name the .onnx file in it."


def test_cut_off_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    good = layered_model(2, delta=False)
    whole = good.SerializeToString()
    path = tmp_path / "cut.onnx"
    for size in [0, 1, 2, *range(3, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert str(path) in _refusal(good, path), size


def test_model_without_operator_sets_is_refused() -> None:
    bad = layered_model(2, delta=False)
    bad.ClearField("opset_import")
    assert _refusal(layered_model(2, delta=False), bad).startswith("the second model holds no operator set")


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(range(256)) * 9, b"\x08\x0a", b"{}"])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(content)
    assert str(path) in _refusal(path, path)


def test_data_that_does_not_fit_its_shape_is_refused() -> None:
    bad = layered_model(2, delta=False)
    bad.graph.initializer[1].raw_data = bad.graph.initializer[1].raw_data[:-4]
    assert "'model.embed_tokens.weight' does not fit its type float32[40,12]" in _refusal(
        layered_model(2, delta=True), bad
    )


@pytest.mark.filterwarnings("ignore:Ignoring unknown external data key")
def test_damaged_file_is_compared_or_refused_and_nothing_else(tmp_path: Path) -> None:
    path, rng = tmp_path / "damaged.onnx", random.Random(20250730)
    whole = [
        in_a_function(random_model(5, 12, distinct=True)),
        in_a_branch(random_model(6, 12, distinct=False)),
        layered_model(2, delta=True, external="weights.data"),
    ]
    refusals: list[str] = []
    for _ in range(250):
        good = rng.choice(whole)
        content = bytearray(good.SerializeToString())
        for _ in range(rng.choice([1, 1, 2, 5])):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            result = diff(good, path)
        except DeltaLLMError as error:
            refusals.append(str(error))
        else:
            assert result.to_text()
            assert diff(path, good) == result.mirrored()
    assert 25 < len(refusals) < 225
    assert not any("\n" in text for text in refusals)


def test_malformed_graphs_are_refused() -> None:
    good, twice, cyclic, sparse = (layered_model(2, delta=False) for _ in range(4))
    twice.graph.node[1].output[0] = twice.graph.node[0].output[0]
    assert "redeclared" in _refusal(good, twice)
    cyclic.graph.node[4].input[0] = cyclic.graph.node[6].output[0]
    assert "has a cycle" in _refusal(cyclic, good)
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64)),
    )
    sparse.graph.sparse_initializer.append(onnx.SparseTensorProto(values=values, indices=indices, dims=[3]))
    assert "sparse tensors" in _refusal(sparse, good)
