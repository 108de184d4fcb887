"""Bring an old model to the oldest opset that the fallback functions have."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnxscript import version_converter

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.functions.delta_attention import OLDEST_OPSET

#: Older models write lists of axes as attributes, which the matchers do not read.
_OLDEST_CONVERTED = 13


def raise_opset(model: ir.Model) -> bool:
    """Convert a model of an older opset, in place, by ONNX's own version converter.

    Nodes and values are new ones afterwards; names, inputs, outputs and weights stay.

    Returns:
        Whether anything was changed.

    Raises:
        DeltaLLMError: where the converter cannot, and for models older than it is known to convert.
    """
    version = model.opset_imports.get("", 0)
    if version >= OLDEST_OPSET:
        return False
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    if version >= _OLDEST_CONVERTED and not model.functions:
        _convert(model)
    after = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    if model.opset_imports.get("", 0) != OLDEST_OPSET or names != after:
        raise DeltaLLMError(
            f"The model uses opset {version}, and the fallback functions need {OLDEST_OPSET}, to which ONNX's version "
            "converter does not bring it: export it with a newer opset, or choose a packed cache_format (int8 or "
            "int4), which has none."
        )
    return True


def _convert(model: ir.Model) -> None:
    """What the converter cannot convert, it says in its log and leaves as it is."""
    logger = logging.getLogger(version_converter.__name__)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        version_converter.convert_version(model, OLDEST_OPSET, fallback=True)
    finally:
        logger.setLevel(level)
