"""`deltallm-onnx rewrite GENAI_DIR OUT_DIR`, and what stock onnxruntime-genai makes of the folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import run_here
from support.genai_models import configuration
from support.genai_texts import GenaiText, random_tokens

NEW = 64
EXACT = ("--profile", "exact", "--window", "3", "--sinks", "1")


def generated(folder: Path) -> list[int]:
    text = GenaiText(folder)
    text.append(random_tokens(23))
    return text.generate(NEW)


def test_a_folder_becomes_a_folder(
    genai_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = genai_folder("Llama"), tmp_path / "target"
    outcome = run_here(capsys, "rewrite", source, target, *EXACT)
    assert (outcome.code, outcome.err) == (0, "")
    written = {path.name for path in target.iterdir()}
    assert written == {path.name for path in source.iterdir()} | {"libdeltallm_ops.so"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()

    # nothing else is said of the model
    before, after = configuration(source), configuration(target)
    assert after["model"]["decoder"]["session_options"].pop("custom_ops_library") == "libdeltallm_ops.so"
    assert before == after

    moved = target.rename(tmp_path / "elsewhere")
    assert generated(moved) == generated(source)


def test_packed_caches_change_the_row_size(
    genai_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = genai_folder("Llama"), tmp_path / "target"
    assert run_here(capsys, "rewrite", source, target, "--cache-format", "int8").code == 0
    before, after = configuration(source), configuration(target)
    del after["model"]["decoder"]["session_options"]["custom_ops_library"]
    assert after["model"]["decoder"].pop("head_size") == 16 + 4
    assert before["model"]["decoder"].pop("head_size") == 16
    assert before == after


def test_float_caches_run_without_the_library(
    genai_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = genai_folder("Qwen3"), tmp_path / "target"
    outcome = run_here(capsys, "rewrite", source, target, *EXACT, "--no-copy-library")
    assert outcome.code == 0
    assert "slow fallback" in outcome.out
    assert not list(target.glob("*.so"))
    assert generated(target) == generated(source)


def test_a_rewritten_folder_is_not_rewritten_again(
    genai_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = genai_folder("Llama"), tmp_path / "target"
    run_here(capsys, "rewrite", source, target)
    outcome = run_here(capsys, "rewrite", target, tmp_path / "again")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "again").exists()


def test_a_folder_without_its_configuration_is_refused(
    genai_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(genai_folder("Llama"), source, ignore=shutil.ignore_patterns("genai_config.json"))
    outcome = run_here(capsys, "rewrite", source, tmp_path / "target")
    assert outcome.code == 2
    assert "genai_config.json" in outcome.err
    assert not (tmp_path / "target").exists()
