from __future__ import annotations

from pathlib import Path

import pytest

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.session_options import reason, session_options


def test_what_is_given_is_set(tmp_path: Path) -> None:
    key = "session.model_external_initializers_file_folder_path"
    # As in the hub's cache: a model is a link to a file with its data beside it.
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "model.onnx").touch()
    (tmp_path / "link.onnx").symlink_to(tmp_path / "real" / "model.onnx")
    options = session_options(threads=3, weights_beside=tmp_path / "link.onnx")
    assert (options.intra_op_num_threads, options.log_severity_level) == (3, 4)
    assert options.get_session_config_entry(key) == str((tmp_path / "real").resolve())
    plain = session_options()
    assert plain.intra_op_num_threads == 0, "ONNX Runtime's choice"
    with pytest.raises(RuntimeError, match="does not have configuration with key"):
        plain.get_session_config_entry(key)


def test_no_threads_are_refused() -> None:
    with pytest.raises(DeltaLLMError, match="threads is 0"):
        session_options(threads=0)


def test_a_reason_is_one_line() -> None:
    assert reason(RuntimeError("bad\n  node\t'x'")) == "bad node 'x'"
    assert len(reason(RuntimeError("x" * 9000))) == 600
