"""Tasks of EleutherAI's lm-evaluation-harness, run on our models (extra `tasks`).

The harness is imported when it is needed; nothing here needs it to be imported.
"""

from deltallm_onnx.tasks.modes import DEFAULT_MODE
from deltallm_onnx.tasks.paper import PaperReport
from deltallm_onnx.tasks.report import Metric, TaskReport, TaskScores
from deltallm_onnx.tasks.run import run_paper, run_tasks

__all__ = ["DEFAULT_MODE", "Metric", "PaperReport", "TaskReport", "TaskScores", "run_paper", "run_tasks"]
