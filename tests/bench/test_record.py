from __future__ import annotations

import json
from pathlib import Path

import pytest

from deltallm_onnx.bench import write_record
from deltallm_onnx.errors import DeltaLLMError


def test_a_record_is_json_and_alone_in_its_folder(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", {"θ": 0.6, "results": [{"a": 1}]})
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {"θ": 0.6, "results": [{"a": 1}]}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_what_cannot_be_written_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_record(path, {"bad": object()})
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_a_folder_is_refused_as_a_file_and_a_missing_one_too(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="is a directory: name the JSON file"):
        write_record(tmp_path, {})
    with pytest.raises(DeltaLLMError, match="does not exist: make it first"):
        write_record(tmp_path / "no" / "r.json", {})
