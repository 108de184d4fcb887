"""The wheel alone, with the packages it asks for: what a user has after `pip install`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.runtime import DecoderModel, TextTokenizer, generate

PROMPT = "she sells sea shells."
NEW = 90
OPTIONS = ("--threshold", "1.1", "--window", "17", "--sinks", "3", "--prefill", "delta")
CONFIG = DeltaConfig(threshold=1.1, window=17, sinks=3, prefill="delta")


def run(environment: Path, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Run a program of that environment, which sees no other."""
    program, *arguments = map(str, command)
    variables = {"PATH": f"{environment}:/usr/bin:/bin", "HOME": str(folder), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [str(environment / program), *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user")
    save_tiny_decoder(path)
    return path


@pytest.mark.parametrize(("cache_format", "suffix"), [("float32", ".onnx"), ("int8", ".ort")])
def test_rewrite_and_run(environment: Path, folder: Path, cache_format: str, suffix: str) -> None:
    out = f"{cache_format}{suffix}"
    done = run(
        environment, folder, "deltallm-onnx", "rewrite", "tiny.onnx", out, "--cache-format", cache_format, *OPTIONS
    )
    assert done.returncode == 0, done.stderr
    done = run(environment, folder, "deltallm-onnx", "run", out, "--prompt", PROMPT, "--max-new-tokens", NEW, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["operator_library"] is True

    here = rewrite(
        folder / "tiny.onnx", folder / f"{cache_format}_here.onnx", CONFIG.replace(cache_format=cache_format)
    ).path
    expected = generate(DecoderModel(here), TextTokenizer(folder).encode(PROMPT), max_new_tokens=NEW)
    assert len(set(expected.tokens)) > 8, "tokens that hardly change prove little"
    assert report["tokens"] == list(expected.tokens)
    assert report["counters"]["delta_sparsity"] > 0


def test_it_is_the_wheel_that_runs(environment: Path, folder: Path) -> None:
    code = "import deltallm_onnx as d; print(d.__file__); print(d.ops_library_path())"
    done = run(environment, folder, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(environment.parent), line


def test_convert_says_what_it_needs(environment: Path, tmp_path: Path) -> None:
    """The packages that trace a model are an extra: gigabytes that nothing else needs."""
    model = Path(__file__).parents[2] / "models" / "demo"
    done = run(environment, tmp_path, "deltallm-onnx", "convert", model, "out.onnx")
    assert done.returncode == 2
    assert "deltallm-onnx[export]" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_command_explains_itself(environment: Path, folder: Path) -> None:
    code = """
from deltallm_onnx.cli.app import app, run
for command in app.registered_commands:
    if run([command.name, "--help"]) != 0:
        raise SystemExit(command.name)
"""
    done = run(environment, folder, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") > 8
