"""Run `deltallm-onnx` and look at what a user sees."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from deltallm_onnx.cli.app import run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run the program in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    streams = capsys.readouterr()
    return Outcome(code, streams.out, streams.err)


def files_below(folder: Path) -> dict[Path, bytes]:
    """Every file with its content, to see that nothing was written."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
