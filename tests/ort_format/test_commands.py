"""`convert` and `rewrite` to .ort, and `run`, `inspect` and the other commands on it, as a user sees them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import pytest
from support.command_line import Outcome, files_below, run_here
from support.tiny_decoder import LAYERS, save_tiny_decoder
from support.tiny_models import exported, shared_directory

from deltallm_onnx.runtime import DecoderModel, generate

Run = Callable[..., Outcome]
PROMPT = ("--prompt", "hello world", "--max-new-tokens", "24")
SETTINGS = ("--window", "7", "--sinks", "1", "--threshold", "1.3")


@pytest.fixture
def deltallm(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_here(capsys, *arguments)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save_tiny_decoder(tmp_path / "model")


def tokens(deltallm: Run, path: Path, *options: str) -> list[int]:
    outcome = deltallm("run", path, *PROMPT, *options, "--json")
    assert outcome.code == 0, outcome.err
    found: list[int] = outcome.json["tokens"]
    return found


@pytest.mark.parametrize("cache_format", ["float16", "int4"])
def test_written_inspected_and_run(dense: Path, deltallm: Run, cache_format: str) -> None:
    folder = dense.parent
    before = set(files_below(folder))
    settings = (*SETTINGS, "--cache-format", cache_format)
    report = deltallm("rewrite", dense, folder / "delta.ort", *settings, "--format", "ort", "--ort-platform", "arm")
    assert (report.code, report.err) == (0, "")
    assert "calls the kernels of the operator library" in report.out
    assert f"wrote {folder / 'delta.ort'} (2 files, " in report.out
    assert ".partial" not in report.out
    written = {folder / "delta.ort", folder / "delta.required_operators.config"}
    assert set(files_below(folder)) == before | written
    assert not any(str(folder).encode() in path.read_bytes() for path in written), "no path of this machine"
    deltallm("rewrite", dense, folder / "delta.onnx", *settings)
    assert tokens(deltallm, folder / "delta.ort") == tokens(deltallm, folder / "delta.onnx")
    found = deltallm("inspect", folder / "delta.ort", "--json").json
    assert found["ort_form"] == "operator"
    assert found["metadata"]["deltallm.config"]["cache_format"] == cache_format
    assert len(found["sites"]) == LAYERS
    text = deltallm("inspect", folder / "delta.ort").out
    assert "needs the operator library for DeltaAttention" in text
    without = deltallm("run", folder / "delta.ort", *PROMPT, "--no-library")
    assert without.code == 2
    assert without.err.startswith(
        f"error: {folder / 'delta.ort'} calls kernels of the operator library libdeltallm_ops"
    )
    assert "register_custom_ops_library" in without.err
    assert without.err.count("\n") == 1


def test_bodies_written_out(dense: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = dense.with_name("bodies.ort")
    settings = (*SETTINGS, "--cache-format", "float32")
    deltallm("rewrite", dense, dense.with_name("delta.onnx"), *settings)
    expected = tokens(deltallm, dense.with_name("delta.onnx"))
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", "/nowhere/libdeltallm_ops.so")
    report = deltallm("rewrite", dense, out, *settings, "--ort-form", "fallback", "--json")
    assert report.code == 0, report.err
    assert report.json["path"] == str(out)
    assert report.json["files"] == [str(out), str(out.with_name("bodies.required_operators.config"))]
    assert report.json["bytes_written"] == sum(Path(path).stat().st_size for path in report.json["files"])
    assert "written out in standard operators" in report.json["notes"][-1]
    assert tokens(deltallm, out) == tokens(deltallm, out, "--no-library") == expected
    text = deltallm("inspect", out).out
    assert "runs without the operator library, slowly: delta attention is written out" in text
    counters = deltallm("run", out, *PROMPT, "--json").json["counters"]
    assert counters["delta_sparsity"] > 0
    deltallm("rewrite", dense, out, *settings, "--ort-form", "fallback", "--no-statistics")
    assert "counters: none, the model was written with --no-statistics" in deltallm("run", out, *PROMPT).err


def test_convert(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, deltallm: Run) -> None:
    model = exported("qwen2", shared_directory(tmp_path_factory)).parent / "model"
    folder = tmp_path / "out"
    folder.mkdir()
    settings = (*SETTINGS, "--cache-format", "int8")
    report = deltallm("convert", model, folder / "delta.ort", *settings)
    assert report.code == 0, report.err
    assert ".partial" not in report.out + report.err
    names = {path.name for path in folder.iterdir()}
    assert {"delta.ort", "delta.required_operators.config", "config.json", "genai_config.json"} <= names
    assert not any(name.endswith((".onnx", ".data")) or name.startswith(".") for name in names)
    assert f"({len(names)} files, " in report.out
    prompt = [5, 71, 33, 8, 60, 17, 4, 29, 80]
    assert (
        genai_tokens(folder, prompt, 40)
        == generate(DecoderModel(folder / "delta.ort"), prompt, max_new_tokens=40).tokens
    )
    # Another model's configuration would take the place of this one's.
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    (folder / "other.ort").write_bytes(b"")
    before = files_below(folder)
    refusal = deltallm("convert", model, folder / "delta.ort", *settings)
    assert (refusal.code, files_below(folder)) == (2, before)
    assert "config.json belongs to other.ort" in refusal.err


def genai_tokens(folder: Path, prompt: list[int], new: int) -> list[int]:
    """What onnxruntime-genai makes of a folder, by its genai_config.json."""
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=len(prompt) + new)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)][len(prompt) :]


@pytest.mark.parametrize(
    ("out", "options", "sentence"),
    [
        ("delta.onnx", ("--format", "ort"), "delta.onnx does not end in .ort"),
        ("delta.ort", ("--format", "onnx"), "ends in .ort, and --format onnx"),
        ("delta.ort", ("--format", "tflite"), "--format is 'tflite': choose one of onnx, ort."),
        ("delta.ort", ("--ort-form", "kernel"), "--ort-form is 'kernel': choose one of operator, fallback."),
        ("delta.ort", ("--ort-platform", "ios"), "--ort-platform is 'ios': choose one of arm, amd64."),
        ("delta.onnx", ("--ort-form", "fallback"), "--ort-form fallback is for an .ort"),
        ("delta.onnx", ("--ort-platform", "arm"), "--ort-platform arm is for an .ort"),
        ("delta.ort", ("--ort-form", "fallback", "--cache-format", "int8"), "int8 caches have no function body"),
    ],
)
def test_wrong_options(dense: Path, deltallm: Run, out: str, options: tuple[str, ...], sentence: str) -> None:
    before = files_below(dense.parent)
    for command, source in (("rewrite", dense), ("convert", dense.parent)):
        outcome = deltallm(command, source, dense.with_name(out), *SETTINGS, *options)
        assert outcome.code == 2
        assert sentence in outcome.err
        assert outcome.err.count("\n") == 1
    assert files_below(dense.parent) == before


def test_what_an_ort_cannot_be_asked(dense: Path, deltallm: Run, tmp_path: Path) -> None:
    path = dense.with_name("delta.ort")
    assert deltallm("rewrite", dense, path, *SETTINGS, "--cache-format", "float16").code == 0
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 90)
    for arguments in (
        ("rewrite", path, tmp_path / "again.onnx"),
        ("rewrite", path, tmp_path / "again.ort"),
        ("run", path, *PROMPT, "--max-memory", "1GB"),
        ("inspect", path, "--context", "64"),
        ("diff", path, dense),
        ("eval", path, "--baseline", dense, "--text", text, "--window-tokens", "64"),
    ):
        outcome = deltallm(*arguments)
        assert outcome.code == 2, arguments
        assert f"{path} is in ONNX Runtime's own format: give the .onnx it was made from" in outcome.err
    folder = deltallm("rewrite", dense.parent, tmp_path / "folder.ort")
    assert folder.code == 2
    assert "is a folder, and an .ort is made from one file" in folder.err
    dense_only = deltallm("convert", dense.parent, tmp_path / "dense.ort", "--dense")
    assert dense_only.code == 2
    assert "--dense writes an .onnx" in dense_only.err
    assert not list(tmp_path.glob("*.onnx")) + list(tmp_path.glob("*.ort"))


def test_bench_takes_it(dense: Path, deltallm: Run, tmp_path: Path) -> None:
    path = dense.with_name("delta.ort")
    assert deltallm("rewrite", dense, path, *SETTINGS, "--cache-format", "float16").code == 0
    record = tmp_path / "record.json"
    options = ("--past", "20", "--threads", "1", "--steps", "2", "--no-memory", "--json", record)
    outcome = deltallm("bench", path, "--baseline", dense, *options)
    assert outcome.code == 0, outcome.err
    assert json.loads(record.read_text())["models"]["model"]["cache_mode"] == "updated in place"
