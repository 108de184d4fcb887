"""Hugging Face causal language models to dense ONNX. Importing this package does not import torch."""

from deltallm_onnx.export.api import export_model
from deltallm_onnx.export.report import ExportReport, LayerReport

__all__ = ["ExportReport", "LayerReport", "export_model"]
