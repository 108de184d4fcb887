"""Models in ONNX Runtime's own format: one .ort file, and what a minimal build of ONNX Runtime needs to run it."""

from deltallm_onnx.ort_format.write import OrtFiles, OrtForm, OrtPlatform, write_ort

__all__ = ["OrtFiles", "OrtForm", "OrtPlatform", "write_ort"]
