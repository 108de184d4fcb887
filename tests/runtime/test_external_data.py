from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from support.tiny_decoder import HIDDEN, VOCABULARY, tiny_decoder

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.external_data import check_external_data
from deltallm_onnx.runtime import DecoderModel


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A model with its weights in a file beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "tiny.onnx"
    onnx.save(tiny_decoder(), path, save_as_external_data=True, location="tiny.onnx.data", size_threshold=512)
    return path


def change(path: Path, **entries: str) -> onnx.ModelProto:
    """Overwrite entries of one weight's external data."""
    model = onnx.load(path, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "embedding")
    for entry in tensor.external_data:
        entry.value = entries.get(entry.key, entry.value)
    onnx.save(model, path)
    return model


def both_forms(path: Path) -> tuple[onnx.ModelProto, ir.Model]:
    return onnx.load(path, load_external_data=False), ir.load(path)


def test_sound_external_data_is_accepted(stored: Path) -> None:
    for model in both_forms(stored):
        assert check_external_data(model, stored.parent) == [stored.parent / "tiny.onnx.data"]
    DecoderModel(stored)


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("/etc/hostname", "not a relative path"),
        ("C:\\weights.data", "not a relative path"),
        ("\\\\server\\share\\weights.data", "not a relative path"),
        ("../outside.data", "leaves the model's directory"),
        ("sub/../../outside.data", "leaves the model's directory"),
        ("sub\\..\\..\\outside.data", "leaves the model's directory"),
        ("absent.data", "is not there"),
        (".", "is not there"),
        ("link.data", "symbolic link"),
        ("folder/tiny.onnx.data", "symbolic link"),
        ("", "not a relative path"),
    ],
)
def test_data_elsewhere_is_refused(stored: Path, location: str, sentence: str) -> None:
    data = stored.parent / "tiny.onnx.data"
    (stored.parent.parent / "outside.data").write_bytes(data.read_bytes())
    (stored.parent / "link.data").symlink_to(stored.parent.parent / "outside.data")
    (stored.parent / "folder").symlink_to(stored.parent, target_is_directory=True)
    change(stored, location=location)
    with pytest.raises(DeltaLLMError, match=sentence):
        check_external_data(onnx.load(stored, load_external_data=False), stored.parent)
    if location:  # the IR library itself cannot hold an empty location
        with pytest.raises(DeltaLLMError, match=sentence):
            check_external_data(ir.load(stored), stored.parent)
    with pytest.raises(DeltaLLMError, match=sentence):
        DecoderModel(stored)


@pytest.mark.parametrize("entries", [{"offset": "-4"}, {"length": "many"}, {"offset": "1e3"}, {"length": "-8"}])
def test_counts_that_are_none_are_refused(stored: Path, entries: dict[str, str]) -> None:
    model = change(stored, **entries)
    with pytest.raises(DeltaLLMError, match="byte count"):
        check_external_data(model, stored.parent)


def test_a_range_behind_the_end_is_refused(stored: Path) -> None:
    size = (stored.parent / "tiny.onnx.data").stat().st_size
    change(stored, offset=str(size - VOCABULARY * HIDDEN * 4 + 4))
    for model in both_forms(stored):
        with pytest.raises(DeltaLLMError, match=f"ends at byte {size + 4}"):
            check_external_data(model, stored.parent)


def test_a_length_left_out_is_that_of_the_shape(stored: Path) -> None:
    model = onnx.load(stored, load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == "embedding")
    kept = [e for e in tensor.external_data if e.key != "length"]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)
    offset = next(e for e in tensor.external_data if e.key == "offset")
    check_external_data(model, stored.parent)
    offset.value = str((stored.parent / "tiny.onnx.data").stat().st_size - VOCABULARY * HIDDEN * 4 + 1)
    with pytest.raises(DeltaLLMError, match="cut short"):
        check_external_data(model, stored.parent)


def test_tensors_in_subgraphs_attributes_and_functions_are_seen(tmp_path: Path) -> None:
    def outside(name: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[1])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"../{name}")
        return tensor

    helper = onnx.helper
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    constant = helper.make_node("Constant", [], ["y"], value=outside("constant"))
    branch = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "b", [], [out], [outside("w")])
    attribute_branch = helper.make_graph([constant], "b", [], [out])
    inputs = [helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "F", [], ["y"], [constant], opsets)
    call = helper.make_node("F", [], ["y"], domain="local")
    plain = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [out])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=plain)
    deeper = helper.make_node("If", ["c"], ["y"], then_branch=plain, else_branch=attribute_branch)
    for node, functions, name in ((choice, [], "w"), (deeper, [], "constant"), (call, [function], "constant")):
        model = helper.make_model(
            helper.make_graph([node], "g", inputs, [out]), functions=functions, opset_imports=opsets
        )
        with pytest.raises(DeltaLLMError, match=f"{name!r} has its data in '../{name}'"):
            check_external_data(model, tmp_path)
        with pytest.raises(DeltaLLMError, match=f"{name!r} has its data in '../{name}'"):
            check_external_data(ir.from_proto(model), tmp_path)


def test_a_location_that_is_not_text_is_refused(stored: Path) -> None:
    damaged = b"\xff" + b"iny.onnx.data"
    stored.write_bytes(stored.read_bytes().replace(b"tiny.onnx.data", damaged))
    with pytest.raises(DeltaLLMError, match=r"damaged|Cannot read|cannot be read"):
        DecoderModel(stored)
