"""One page that shows what delta attention costs and gives in a model."""

from deltallm_onnx.report.gather import gather
from deltallm_onnx.report.request import ReportRequest
from deltallm_onnx.report.write import write_report

__all__ = ["ReportRequest", "gather", "write_report"]
