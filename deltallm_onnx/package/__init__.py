"""Everything that a device needs to run a rewritten model, in one folder: `deltallm-onnx package`."""

from deltallm_onnx.package.assemble import package_model
from deltallm_onnx.package.request import ModelFormat, PackageRequest
from deltallm_onnx.package.result import PackagedFile, PackageResult
from deltallm_onnx.package.targets import TARGETS, Target

__all__ = ["TARGETS", "ModelFormat", "PackageRequest", "PackageResult", "PackagedFile", "Target", "package_model"]
