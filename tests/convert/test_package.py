"""The public names of the package: there, lazily imported, and not hidden by modules of the same names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import deltallm_onnx

ROOT = Path(deltallm_onnx.__file__).parents[1]


def python(code: str) -> str:
    """Run code in a fresh interpreter."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return finished.stdout.strip()


def test_every_public_name_is_there() -> None:
    for name in deltallm_onnx.__all__:
        assert getattr(deltallm_onnx, name) is not None
        assert name in dir(deltallm_onnx)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = deltallm_onnx.nothing


@pytest.mark.parametrize("name", ["convert", "diff"])
@pytest.mark.parametrize("first", ["import deltallm_onnx.{0}", "from deltallm_onnx.{0} import {0}", "pass"])
def test_functions_are_not_hidden_by_their_modules(name: str, first: str) -> None:
    code = f"{first.format(name)}\nimport deltallm_onnx, types\nprint(type(deltallm_onnx.{name}).__name__)"
    assert python(code) == "function"


def test_importing_the_package_imports_no_graph_or_runtime_library() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy'}"
    assert python(f"import deltallm_onnx, sys\nprint({heavy} & set(sys.modules))") == "set()"


def test_rewriting_imports_no_torch() -> None:
    assert python("import sys\nfrom deltallm_onnx import rewrite\nprint('torch' in sys.modules)") == "False"


def test_version_is_that_of_the_project() -> None:
    assert f'version = "{deltallm_onnx.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
