"""`convert` and `rewrite` with another storage of weights: files, reports, and refusals that leave nothing behind."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from support.command_line import files_below
from support.hf_reference import Scenario, load_eager, run, scenarios
from support.tiny_models import exported, shared_directory
from support.weight_models import dequantised, initializers, with_weights

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, WeightFormat, profile
from deltallm_onnx.convert import ConvertReport
from deltallm_onnx.runtime import register

Converted = Callable[[str], tuple[Path, ConvertReport]]

EXACT = profile("exact")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2: tied embeddings, Gemm, a table of positions; the model it was made from lies in `model` beside it."""
    return exported("gpt2", shared_directory(tmp_path_factory))


@pytest.fixture(scope="module")
def prompts(dense: Path) -> list[Scenario]:
    return list(scenarios(load_eager(dense.parent / "model")))


@pytest.fixture(scope="module")
def converted(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The model and its report by weight format, each converted once."""

    @functools.cache
    def convert(name: str) -> tuple[Path, ConvertReport]:
        out = tmp_path_factory.mktemp(name) / "small.onnx"
        report = deltallm_onnx.convert(dense.parent / "model", out, EXACT, weights=storage(name), copy_library=False)
        return out, report

    return convert


def storage(name: str) -> WeightFormat:
    """The format, with float32 arithmetic."""
    return WeightFormat(name, accuracy_level=None if name == "float16" else 0)  # type: ignore[arg-type]


def logits(path: Path, prompts: list[Scenario]) -> np.ndarray:
    import onnxruntime as ort  # noqa: PLC0415 - beside its only use

    options = ort.SessionOptions()
    register(options)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    steps = [(step, got) for prompt in prompts for step, got in zip(prompt.steps, run(session, prompt), strict=True)]
    return np.concatenate([got[step.real] for step, got in steps])


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_the_converted_model_computes_with_what_is_stored(
    name: str, dense: Path, converted: Converted, prompts: list[Scenario], tmp_path: Path
) -> None:
    out, report = converted(name)
    made = onnx.load(out)
    restored = with_weights(onnx.load(dense), dequantised(made))
    onnx.save(restored, tmp_path / "restored.onnx")
    deltallm_onnx.rewrite(tmp_path / "restored.onnx", tmp_path / "float.onnx", EXACT)
    expected = logits(tmp_path / "float.onnx", prompts)
    np.testing.assert_allclose(logits(out, prompts), expected, atol=1e-4, rtol=0)
    assert report.weights is not None
    assert report.weights.weight_format == storage(name)
    assert [weight.name for weight in report.weights.left] == ["transformer.wpe.weight"]
    data = out.with_name("small.onnx.data").stat().st_size
    assert data < (dense.stat().st_size + dense.with_name("dense.onnx.data").stat().st_size) / 2
    said = json.loads(json.dumps(report.to_dict()))["weights"]
    assert said["format"]["name"] == name
    assert said["relative_rms"] == report.weights.relative_rms
    assert f"{len(report.weights.stored)} weights stored as {name}" in str(report)
    assert "ONNX Runtime 1.23 or later" in str(report)


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("name", ["int4", "float16"])
def test_a_rewritten_model_is_the_converted_one(
    name: str, dense: Path, converted: Converted, prompts: list[Scenario], tmp_path: Path, *, external: bool
) -> None:
    """Weights outside and inside the file; the order of the steps differs, what is stored does not."""
    source = dense
    if not external:
        source = tmp_path / "whole.onnx"
        onnx.save(onnx.load(dense), source)
    out = tmp_path / "rewritten.onnx"
    report = deltallm_onnx.rewrite(source, out, EXACT, weights=storage(name))
    assert (tmp_path / "rewritten.onnx.data").exists() == external
    path, reference = converted(name)
    assert report.weights is not None
    assert reference.weights is not None
    assert report.weights == reference.weights
    ours, theirs = initializers(onnx.load(out)), initializers(onnx.load(path))
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        np.testing.assert_array_equal(numpy_helper.to_array(ours[key]), numpy_helper.to_array(tensor), err_msg=key)
    np.testing.assert_array_equal(logits(out, prompts), logits(path, prompts))


def test_float32_changes_nothing(dense: Path, tmp_path: Path) -> None:
    plain = deltallm_onnx.rewrite(dense, tmp_path / "plain.onnx", EXACT)
    asked = deltallm_onnx.rewrite(dense, tmp_path / "asked.onnx", EXACT, weights=WeightFormat("float32"))
    assert plain.weights is None
    assert asked.weights is None
    assert asked.to_dict()["weights"] is None
    assert (tmp_path / "plain.onnx.data").read_bytes() == (tmp_path / "asked.onnx.data").read_bytes()


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4"])
def test_quantised_models_are_refused(name: str, dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    made = ir.load(dense)
    small = folder / "small.onnx"
    from deltallm_onnx.weights.store import store_weights  # noqa: PLC0415 - beside its only use

    store_weights(made, WeightFormat("int4"), "it")
    ir.save(made, small, format="protobuf", external_data="small.data")
    before = files_below(tmp_path)
    for source, out in ((small, tmp_path / "out.onnx"), (folder, tmp_path / "out")):
        with pytest.raises(DeltaLLMError, match=r"quantised already \(9 MatMulNBits, 1 GatherBlockQuantized\)"):
            deltallm_onnx.rewrite(source, out, EXACT, weights=WeightFormat(name))  # type: ignore[arg-type]
    assert files_below(tmp_path) == before
    # Without a storage for the weights it is rewritten as it is.
    assert deltallm_onnx.rewrite(small, tmp_path / "out.onnx", EXACT).rewrite.rewritten == 2


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize(("name", "value"), [("int4", np.nan), ("int8", np.inf), ("float16", 1e6)])
def test_weights_that_cannot_be_stored_leave_nothing(
    name: str, value: float, dense: Path, tmp_path: Path, *, external: bool
) -> None:
    """It is found out in the middle of writing."""
    source = tmp_path / "in" / "dense.onnx"
    source.parent.mkdir()
    model = onnx.load(dense)
    tensor = initializers(model)["transformer.h.1.mlp.c_fc.weight"]
    array = numpy_helper.to_array(tensor).copy()
    array[7, 11] = value
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, source, save_as_external_data=external, location="dense.data")
    before = files_below(tmp_path)
    with pytest.raises(DeltaLLMError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight holds"):
        deltallm_onnx.rewrite(source, tmp_path / "out.onnx", EXACT, weights=WeightFormat(name))  # type: ignore[arg-type]
    assert files_below(tmp_path) == before


def test_weights_that_cannot_be_stored_stop_a_conversion(dense: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file  # noqa: PLC0415 - beside its only use

    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((dense.parent / "model" / "config.json").read_bytes())
    tensors = load_file(dense.parent / "model" / "model.safetensors")
    table = tensors["transformer.wte.weight"].copy()
    table[5, 3] = 1e5
    tensors["transformer.wte.weight"] = table
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    before = files_below(tmp_path)
    with pytest.raises(DeltaLLMError, match="and float16 ends at 65504"):
        deltallm_onnx.convert(model, tmp_path / "out.onnx", EXACT, weights=WeightFormat("float16"))
    assert files_below(tmp_path) == before
