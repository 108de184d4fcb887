"""What a layer was given, held against the oracle: it must make of it what the operator made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.report_models import ReportModels
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, POSITIONS, QUERY_HEADS, VOCABULARY, tiny_decoder

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.reference import delta_attention
from deltallm_onnx.report.layer_inputs import LayerInputs, layer_inputs

TOKENS = np.random.default_rng(12).integers(0, VOCABULARY, 37)

FORMS: dict[str, dict[str, Any]] = {
    "element": {"granularity": "element", "threshold": 0.7, "cache_format": "float32", "refresh": 7},
    "row, float16": {"threshold": 1.1, "cache_format": "float16", "prefill": "delta"},
    "row, int8": {"threshold": 1.1, "cache_format": "int8"},
    "row, absolute, int4": {"threshold": 3.0, "row_rule": "absolute", "cache_format": "int4", "v_skip": 0.01},
}


@pytest.mark.parametrize("form", FORMS)
def test_the_oracle_makes_of_the_inputs_what_the_operator_made(models: ReportModels, tmp_path: Path, form: str) -> None:
    path = tmp_path / "delta.onnx"
    rewrite(models.dense, path, DeltaConfig(window=5, sinks=4).replace(**FORMS[form]))
    found = layer_inputs(path, TOKENS)
    assert [layer.layer for layer in found] == list(range(LAYERS))
    for layer in found:
        assert layer.query.shape == (QUERY_HEADS, len(TOKENS), HEAD_SIZE)
        assert layer.key.shape == layer.value.shape == (KV_HEADS, len(TOKENS), HEAD_SIZE)
        output, statistics = _by_oracle(layer)
        np.testing.assert_allclose(layer.output, output, rtol=0, atol=2e-3 if "int" in form else 2e-5)
        np.testing.assert_array_equal(layer.statistics, statistics)


def test_settings_are_the_file_s(models: ReportModels) -> None:
    """The model is opened with other settings of its prompt; what is told is what the file says."""
    element, int8 = (layer_inputs(path, TOKENS)[1].settings for path in (models.element, models.int8))
    assert (element["prefill"], element["granularity"], element["refresh"]) == ("delta", "element", 11)
    assert (int8["prefill"], int8["granularity"], int8["cache_format"]) == ("exact", "row", "int8")


def test_inputs_are_the_dense_model_s(models: ReportModels) -> None:
    """Layers behind the first one see what exact attention before them gave, whatever is held."""
    element, int8 = (layer_inputs(path, TOKENS) for path in (models.element, models.int8))
    with_library = onnx.load(models.dense)
    watched = [f"{role}.{layer}" for layer in range(LAYERS) for role in ("query", "key", "value")]
    expected = _run_dense(with_library, watched)
    for layer in range(LAYERS):
        for found in (element[layer], int8[layer]):
            for role in ("query", "key", "value"):
                flat = getattr(found, role).transpose(1, 0, 2).reshape(len(TOKENS), -1)
                # float32 sums in another order, values of order ten
                np.testing.assert_allclose(flat, expected[f"{role}.{layer}"][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotation_inside_the_operator_is_followed(tmp_path: Path, interleaved: int) -> None:
    path = _grouped_query(tmp_path, _rotated(interleaved))
    layer = layer_inputs(path, TOKENS)[0]
    assert layer.settings["do_rotary"] == 1
    output, _ = _by_oracle(layer)
    np.testing.assert_allclose(layer.output, output, rtol=0, atol=2e-5)


def test_fixed_caches_are_read_from_an_empty_one(models: ReportModels, tmp_path: Path) -> None:
    """A file may fix the rows of its caches, as folders of onnxruntime-genai with int4 caches do."""
    model = onnx.load(models.int8)
    for value in (*model.graph.input, *model.graph.output):
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.shape.dim[2].dim_value = 64
    onnx.save(model, tmp_path / "fixed.onnx")
    (fixed, *_), (free, *_) = (layer_inputs(path, TOKENS) for path in (tmp_path / "fixed.onnx", models.int8))
    np.testing.assert_array_equal(fixed.output, free.output)


def test_a_dense_model_has_none(models: ReportModels) -> None:
    with pytest.raises(DeltaLLMError, match="no DeltaAttention node"):
        layer_inputs(models.dense, TOKENS)


def _by_oracle(layer: LayerInputs) -> tuple[np.ndarray, np.ndarray]:
    """Output [T, Hq·D] and statistics [Hkv, 8] of the oracle with rotated inputs."""
    not_asked = ("prefill", "prefill_compute", "do_rotary", "rotary_interleaved")
    settings = {name: value for name, value in layer.settings.items() if name not in not_asked}
    T = layer.query.shape[1]
    query, key, value = (array.transpose(1, 0, 2).reshape(1, T, -1) for array in (layer.query, layer.key, layer.value))
    output, _, _, statistics = delta_attention(
        query,
        key,
        value,
        attention_mask=np.ones((1, T), np.int64),
        threshold=layer.threshold,
        row_weight=layer.row_weight,
        prefill="exact",
        **settings,
    )
    return output[0], statistics


def _run_dense(model: onnx.ModelProto, names: list[str]) -> dict[str, np.ndarray]:
    import onnxruntime as ort  # noqa: PLC0415  # a peer, for this test alone

    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    empty = np.zeros((1, KV_HEADS, 0, HEAD_SIZE), np.float32)
    feeds = {value.name: empty for value in session.get_inputs() if value.name.startswith("past")}
    feeds |= {"input_ids": TOKENS[None], "attention_mask": np.ones((1, len(TOKENS)), np.int64)}
    feeds["position_ids"] = np.arange(len(TOKENS))[None]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _grouped_query(folder: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    model = tiny_decoder(grouped_query=True)
    edit(model)
    onnx.save(model, folder / "grouped.onnx")
    config = DeltaConfig(threshold=0.4, granularity="element", window=4, sinks=1, cache_format="float32")
    rewrite(folder / "grouped.onnx", folder / "delta.onnx", config)
    return folder / "delta.onnx"


def _rotated(interleaved: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        angles = np.arange(POSITIONS)[:, None] * 100.0 ** -np.linspace(0, 1, HEAD_SIZE // 2)
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            model.graph.initializer.append(numpy_helper.from_array(table.astype(np.float32), name))
        for node in model.graph.node:
            if node.op_type == "GroupQueryAttention":
                node.input.extend(["cos", "sin"])
                node.attribute.append(onnx.helper.make_attribute("do_rotary", 1))
                node.attribute.append(onnx.helper.make_attribute("rotary_interleaved", interleaved))

    return edit
