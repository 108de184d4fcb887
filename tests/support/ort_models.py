"""Models in ONNX Runtime's own format, made by ONNX Runtime's own converter."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort


def to_ort(model: Path, library: Path | None, platform: str | None = None) -> Path:
    """Write the .ort of an .onnx beside it.

    Args:
        model: the .onnx.
        library: of operators that the .ort is to call; without it, function bodies are written out.
        platform: "arm" or "amd64", what optimizations may suppose; None: this machine.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        convert_onnx_models_to_ort(
            model,
            model.parent,
            [OptimizationStyle.Fixed],
            custom_op_library_path=library,
            target_platform=platform,
        )
    return model.with_suffix(".ort")
