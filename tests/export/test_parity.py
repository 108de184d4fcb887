"""Every architecture: logits of the exported graph in ONNX Runtime equal transformers' eager attention."""

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from support import hf_reference, tiny_models

# float32 through two or three layers with sums of about 100 terms and logits near 1: rounding stays near 1e-5.
TOLERANCE = 1e-4


@functools.cache
def reference(path: Path) -> list[hf_reference.Scenario]:
    """What transformers says about an exported model."""
    return list(hf_reference.scenarios(hf_reference.load_eager(path.parent / "model")))


def open_session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", tiny_models.ARCHITECTURES)
def test_logits_equal_eager_attention(name: str, exports: Path) -> None:
    path = tiny_models.exported(name, exports)
    expected = reference(path)
    assert np.std(expected[0].steps[0].logits) > 0.3, "logits near 0 would hide errors"
    errors = hf_reference.largest_error(open_session(path), expected)
    assert max(errors.values()) < TOLERANCE, errors


def edited(path: Path, change: str) -> Path:
    """A copy of an exported model with one part of its attention dropped."""
    model = ir.load(path)
    for node in model.graph:
        if change == "softcap" and node.op_type == "Attention":
            node.attributes["softcap"] = ir.AttrFloat32("softcap", 0.0)
        if change == "scale" and node.op_type == "Attention":
            node.attributes["scale"] = ir.AttrFloat32("scale", 0.9 * node.attributes["scale"].as_float())
        if change == "window" and node.op_type == "Sub" and node.inputs[1].const_value is not None:
            far = ir.Value(name="far", const_value=ir.tensor(np.array(10**6, np.int64), name="far"))
            if "far" not in model.graph.initializers:
                model.graph.register_initializer(far)
            node.replace_input_with(1, model.graph.initializers["far"])
        if change == "padding" and node.op_type == "Cast" and node.inputs[0].name == "attention_mask":
            everything = ir.Node("", "Equal", [node.inputs[0], node.inputs[0]], name="everything")
            model.graph.insert_before(node, everything)
            ir.convenience.replace_all_uses_with(node.outputs[0], everything.outputs[0])
    out = path.with_name(f"without_{change}.onnx")
    ir.save(model, out, external_data=f"{out.name}.data")
    return out


@pytest.mark.parametrize(
    ("name", "change", "scenario"),
    [
        ("gemma2", "softcap", "prefill"),
        ("gemma2", "window", "prefill"),
        ("gemma2", "window", "decode past the window"),
        ("gemma2", "padding", "left padding"),
        ("gemma2", "scale", "short prefill"),
        ("mistral", "window", "decode past the window"),
        ("llama", "padding", "left padding"),
    ],
)
def test_the_comparison_notices_a_missing_part(name: str, change: str, scenario: str, exports: Path) -> None:
    path = tiny_models.exported(name, exports)
    errors = hf_reference.largest_error(open_session(edited(path, change)), reference(path))
    assert errors[scenario] > 100 * TOLERANCE, errors


def test_scenarios_outgrow_every_window() -> None:
    lengths = [sum(new) for _, _, new in hf_reference.SHAPES]
    assert sorted(lengths)[1] > 9
    assert any(len(rows) == 3 and len(set(rows)) == 3 for _, rows, _ in hf_reference.SHAPES)
