from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheels() -> dict[str, Path]:
    """Machine → wheel, as `make wheels` left them."""
    assert (ROOT / "dist" / ".ready").is_file(), "run 'make wheels'"
    found = {}
    for machine in ("x86_64", "aarch64"):
        (found[machine],) = (ROOT / "dist").glob(f"deltallm_onnx-*_{machine}.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment in which the wheel was installed, with what it asks for."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    dependencies = ROOT / "build" / "wheels" / "dependencies"
    assert (dependencies / ".ready").is_file(), "run 'make wheels'"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(folder / "bin" / "python")]
    install = ["install", "-q", "--no-compile", "--no-index", "--find-links", str(dependencies), str(wheels["x86_64"])]
    done = subprocess.run([*pip, *install], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"
