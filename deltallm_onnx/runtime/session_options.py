"""What every ONNX Runtime session of this package is opened with, and what its errors say."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from deltallm_onnx.errors import DeltaLLMError

# ONNX Runtime's severities: its errors reach us as exceptions, so its own log stays quiet.
_LOG_FATAL_ONLY = 4
# onnxruntime_session_options_config_keys.h
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_LONGEST_REASON = 600


def session_options(*, threads: int | None = None, weights_beside: Path | None = None) -> ort.SessionOptions:
    """Options of a session that is about to be opened.

    Args:
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        weights_beside: the file that a model which comes as bytes was read from: its external tensors lie there.

    Raises:
        DeltaLLMError: for fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise DeltaLLMError(f"threads is {threads}: give a whole number of at least 1.")
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_FATAL_ONLY
    if weights_beside is not None:
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(weights_beside.resolve().parent))
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def reason(error: Exception) -> str:
    """The text of an exception of ONNX Runtime, on one line."""
    return " ".join(str(error).split())[:_LONGEST_REASON]
