"""deltallm-onnx: delta-threshold, hybrid-window attention for LLMs on stock ONNX Runtime CPUs."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from deltallm_onnx.config import DeltaConfig, profile
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.formats import WeightFormat

if TYPE_CHECKING:
    from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan
    from deltallm_onnx.calibration.api import calibrate
    from deltallm_onnx.convert import convert, rewrite
    from deltallm_onnx.diff import diff
    from deltallm_onnx.runtime import cache_spec, ops_library_path, register

__all__ = [
    "AttentionPlan",
    "DeltaConfig",
    "DeltaLLMError",
    "LayerPlan",
    "WeightFormat",
    "__version__",
    "cache_spec",
    "calibrate",
    "convert",
    "diff",
    "ops_library_path",
    "profile",
    "register",
    "rewrite",
]

__version__ = "0.1.0"

# Imported when first used: a program that only registers the operator library needs no graph library, and only
# `convert` needs torch.
_LAZY = {
    "AttentionPlan": "deltallm_onnx.attention_plan",
    "LayerPlan": "deltallm_onnx.attention_plan",
    "cache_spec": "deltallm_onnx.runtime",
    "calibrate": "deltallm_onnx.calibration.api",
    "convert": "deltallm_onnx.convert",
    "diff": "deltallm_onnx.diff",
    "ops_library_path": "deltallm_onnx.runtime",
    "register": "deltallm_onnx.runtime",
    "rewrite": "deltallm_onnx.convert",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


class _Package(types.ModuleType):
    """Keeps the functions `convert` and `diff` from being hidden by the modules of the same names.

    Importing a submodule sets it as an attribute of its package; for a public name, that is dropped here. The submodule
    is found through the import system as ever.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
