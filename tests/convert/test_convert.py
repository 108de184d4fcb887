"""`convert`: one call from a Hugging Face directory to a rewritten model with all that belongs to it."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnx_ir as ir
import pytest
from support.tiny_models import exported, shared_directory

import deltallm_onnx
from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.packed_sizes import bytes_per_token
from deltallm_onnx.runtime import ops_library_path

CONFIG = DeltaConfig(threshold=0.5, window=9, sinks=2)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense export; the model it was made from lies in `model` beside it."""
    return exported("qwen2", shared_directory(tmp_path_factory))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_whole_path(dense: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    out = tmp_path / dense.name
    report = deltallm_onnx.convert(dense.parent / "model", out, CONFIG, statistics=True, progress=steps.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in report.files)
    assert {"dense.onnx", "dense.onnx.data", "config.json", "genai_config.json"} <= {p.name for p in report.files}
    assert report.path == report.files[0] == out
    assert report.rewrite.lines[0] == "2/2 attention layers rewritten"
    assert report.bytes_written == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert "Rewriting" in steps
    assert "peak memory of the export: " in str(report)
    assert json.loads(json.dumps(report.to_dict()))["config"] == CONFIG.to_dict()
    genai = json.loads((tmp_path / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["filename"] == "dense.onnx"
    library = tmp_path / genai["model"]["decoder"]["session_options"]["custom_ops_library"]
    assert sha256(library) == sha256(ops_library_path())
    assert genai["model"]["decoder"]["head_size"] == bytes_per_token("int8", 8)
    assert genai["search"]["past_present_share_buffer"] is True
    onnx.checker.check_model(out)
    model = ir.load(out)
    assert sum(node.op_type == "DeltaAttention" for node in model.graph) == 2
    # The export's data file became that of the result, byte for byte, and its graph is the one that was rewritten.
    assert sha256(tmp_path / "dense.onnx.data") == sha256(dense.parent / "dense.onnx.data")
    assert model.metadata_props["deltallm.source_sha256"] == sha256(dense)


def test_a_failure_after_the_export_leaves_nothing(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(_: Path, out: Path, **__: object) -> SimpleNamespace:
        for suffix in ("", ".data"):
            shutil.copyfile(f"{dense}{suffix}", out.with_name(f"dense.onnx{suffix}"))
        return SimpleNamespace(path=out.with_name("dense.onnx"), notes=(), parameters=5, peak_rss_bytes=7)

    def refuse(*_: object, **__: object) -> None:
        raise DeltaLLMError("refused on purpose")

    monkeypatch.setattr(importlib.import_module("deltallm_onnx.export"), "export_model", export)
    monkeypatch.setattr(importlib.import_module("deltallm_onnx.convert"), "rewrite_model", refuse)
    with pytest.raises(DeltaLLMError, match="refused on purpose"):
        deltallm_onnx.convert(dense.parent / "model", tmp_path / "dense.onnx", CONFIG)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_the_export(dense: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    for out in (tmp_path, tmp_path / "missing" / "delta.onnx"):
        with pytest.raises(DeltaLLMError):
            deltallm_onnx.convert(dense.parent / "model", out, CONFIG, progress=steps.append)
    assert not steps
    assert not list(tmp_path.iterdir())
