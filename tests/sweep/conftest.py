"""A folder with a tiny model and a text, and what a sweep of it is called with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.command_line import Outcome, run_here
from support.tiny_decoder import save_tiny_decoder

#: Options of every sweep: 12 windows of text, of which 6 are searched.
SETTINGS = (
    *("--text", "text.txt", "--window-tokens", 64, "--text-windows", 12),
    *("--window", "8,19", "--sinks", "1,3", "--threads", 1, "--study", "tiny"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with tiny.onnx, its tokenizer and text.txt."""
    save_tiny_decoder(tmp_path)
    letters = np.random.default_rng(43).choice([*"abcdefghijklmnopqrstuvwxyz ."], 1500)
    (tmp_path / "text.txt").write_text("".join(letters))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DELTALLM_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `deltallm-onnx sweep tiny.onnx` with SETTINGS and more; later options win."""
    assert (folder / "tiny.onnx").is_file()

    def run(*arguments: object) -> Outcome:
        return run_here(capsys, "sweep", "tiny.onnx", *SETTINGS, *arguments)

    return run


@pytest.fixture
def settings() -> tuple[object, ...]:
    """SETTINGS, for processes of their own."""
    return SETTINGS
