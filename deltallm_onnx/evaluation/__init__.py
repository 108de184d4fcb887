"""What delta attention costs and gives, measured: predictions against the dense model's, counters, retrieval, speed."""

from deltallm_onnx.evaluation.compare import Score, compare
from deltallm_onnx.evaluation.confidence import bootstrap_interval
from deltallm_onnx.evaluation.forms import delta_form
from deltallm_onnx.evaluation.log_probabilities import Predictions, kl, log_softmax, score
from deltallm_onnx.evaluation.measure import evaluate
from deltallm_onnx.evaluation.quality import Bucket, Quality, by_position
from deltallm_onnx.evaluation.reading import Mode, Reader
from deltallm_onnx.evaluation.result import Evaluation
from deltallm_onnx.evaluation.retrieval import Sample, passkeys, repeated_sequences
from deltallm_onnx.evaluation.trial import Trial
from deltallm_onnx.evaluation.windows import text_windows

__all__ = [
    "Bucket",
    "Evaluation",
    "Mode",
    "Predictions",
    "Quality",
    "Reader",
    "Sample",
    "Score",
    "Trial",
    "bootstrap_interval",
    "by_position",
    "compare",
    "delta_form",
    "evaluate",
    "kl",
    "log_softmax",
    "passkeys",
    "repeated_sequences",
    "score",
    "text_windows",
]
