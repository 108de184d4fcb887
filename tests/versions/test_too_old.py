"""An ONNX Runtime that the operator library cannot run in is told so when it registers the library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import stub_runtime

from deltallm_onnx.runtime import ops_library_path


@pytest.mark.parametrize(
    ("version", "newest_api", "asked", "sentence"),
    [
        # Asking for an API that it has not would print an error of its own: the first is there for the refusal.
        ("1.16.3", 16, [1], "This is ONNX Runtime 1.16.3: the ai.deltallm operators need 1.17 or newer."),
        ("1.9.0", 9, [1], "This is ONNX Runtime 1.9.0: the ai.deltallm operators need 1.17 or newer."),
        ("0.5.0", 1, [1], "This is ONNX Runtime 0.5.0: the ai.deltallm operators need 1.17 or newer."),
        (
            "1.17.0",
            16,
            [1, 17],
            "ONNX Runtime 1.17.0 does not offer its API version 17: install an official release.",
        ),
        ("main", 17, [1], "ONNX Runtime calls itself version 'main': 1.17 or newer is needed."),
    ],
)
def test_refusal(version: str, newest_api: int, asked: list[int], sentence: str) -> None:
    command = [sys.executable, Path(stub_runtime.__file__), ops_library_path(), version, newest_api]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [sentence, asked]
