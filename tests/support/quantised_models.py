"""Dense models with weights in another storage."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.report import WeightsReport
from deltallm_onnx.weights.store import store_weights


def save_quantised(dense: Path, out: Path, weights: str) -> WeightsReport:
    """Write a dense model with its weights as `--weights` stores them, with float32 arithmetic.

    Shapes are inferred before: ONNX cannot look through MatMulNBits, and an export writes them down as well.
    """
    model = ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(onnx.load(dense)))
    level = 0 if weights.startswith("int") else None
    report = store_weights(model, WeightFormat(weights, accuracy_level=level), str(dense))  # type: ignore[arg-type]  # of tests
    ir.save(model, out, format="protobuf", external_data=f"{out.name}.data")
    return report()
