from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.tiny_decoder import tiny_decoder

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import DecoderModel


def test_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="There is no file"):
        DecoderModel(tmp_path / "nope.onnx")
    with pytest.raises(DeltaLLMError, match="is a directory"):
        DecoderModel(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 3000])
def test_a_file_cut_short_is_refused(dense_path: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(dense_path.read_bytes()[:keep])
    with pytest.raises(DeltaLLMError, match="cut short"):
        DecoderModel(cut)


def rename_input(old: str, new: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        next(value for value in model.graph.input if value.name == old).name = new
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]

    return change


def free_head_size(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name == "past_key_values.1.key")
    value.type.tensor_type.shape.dim[3].dim_param = "D"


def drop_present(model: onnx.ModelProto) -> None:
    model.graph.output.remove(next(v for v in model.graph.output if v.name == "present.1.value"))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Gathered"


def delta_without_body(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            node.domain, node.op_type = "ai.deltallm", "DeltaAttention"
    model.opset_import.append(onnx.helper.make_opsetid("ai.deltallm", 1))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (rename_input("input_ids", "tokens"), "not a language model"),
        (rename_input("position_ids", "token_type_ids"), "the input 'token_type_ids'"),
        (free_head_size, r"past_key_values\.1\.key with the shape \[0, 3, 0, 0\]"),
        (drop_present, r"layer 1 without .*present\.1\.value"),
        (unknown_operator, "ONNX Runtime .* refuses"),
    ],
)
def test_foreign_models_are_refused_in_one_sentence(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[onnx.ModelProto], None],
    sentence: str,
) -> None:
    model = tiny_decoder()
    change(model)
    path = tmp_path / "foreign.onnx"
    onnx.save(model, path)
    with pytest.raises(DeltaLLMError, match=sentence) as caught:
        DecoderModel(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_node_without_body_needs_the_library(tmp_path: Path) -> None:
    model = tiny_decoder()
    delta_without_body(model)
    onnx.save(model, tmp_path / "delta.onnx")
    with pytest.raises(DeltaLLMError, match="no function body for DeltaAttention"):
        DecoderModel(tmp_path / "delta.onnx", use_library=False)


def test_threads_below_one_are_refused(dense_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="threads is 0"):
        DecoderModel(dense_path, threads=0)


def test_initializers_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    """Old writers list every weight among the inputs."""
    model = tiny_decoder()
    weight = model.graph.initializer[0]
    model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, tmp_path / "old.onnx")
    assert set(DecoderModel(tmp_path / "old.onnx").signature.input_types) == {
        "input_ids",
        "attention_mask",
        "position_ids",
    }
