"""Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import typer
from support.command_line import Outcome

from deltallm_onnx.cli.interrupt import Interrupted

Run = Callable[..., Outcome]


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (KeyboardInterrupt(), "Interrupted."),
        (typer.Abort(), "Interrupted."),
        (Interrupted("go on with --resume."), "Interrupted: go on with --resume."),
    ],
    ids=["a signal", "typer's own exception", "a command with more to say"],
)
def test_it_is_told_once(deltallm: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, sentence: str) -> None:
    def stopped(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("deltallm_onnx.cli.inspect.inspect_model", stopped)
    assert deltallm("inspect", "model.onnx") == Outcome(130, "", f"error: {sentence}\n")
