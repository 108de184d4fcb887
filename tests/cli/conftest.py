from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Outcome, run_here
from support.tiny_decoder import save_tiny_decoder


@pytest.fixture
def deltallm(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the program in this process."""
    return lambda *arguments: run_here(capsys, *arguments)


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A dense model with its tokenizer, in a folder of its own."""
    return save_tiny_decoder(tmp_path / "model")


@pytest.fixture
def delta(dense: Path, deltallm: Callable[..., Outcome]) -> Path:
    """Its rewritten form: exact keys in a window of 5 tokens, held ones before."""
    path = dense.with_name("delta.onnx")
    settings = ("--window", "5", "--sinks", "1", "--threshold", "1.3", "--cache-format", "float16")
    outcome = deltallm("rewrite", dense, path, *settings)
    assert outcome.code == 0, outcome
    return path
