"""Rewrite the attention of an ONNX model into `ai.deltallm::DeltaAttention`: matchers, one builder, small passes."""

from __future__ import annotations

from deltallm_onnx.passes.pipeline import model_geometry, rewrite_model
from deltallm_onnx.passes.report import RewriteReport
from deltallm_onnx.passes.site import AttentionSite, Declined

__all__ = ["AttentionSite", "Declined", "RewriteReport", "model_geometry", "rewrite_model"]
