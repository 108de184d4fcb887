"""One command packages a model for ARM64 Linux; the package alone runs there, elsewhere and with no environment."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.arm64 import ARM64, arm64_runner
from support.packages import CONFIG, files_of, prompt_of, readme, runner_line

from deltallm_onnx import convert
from deltallm_onnx.cli.app import run
from deltallm_onnx.library_file import read_library_file
from deltallm_onnx.runtime import DecoderModel, generate

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
CPU = "cortex-a76"
#: Largest difference of a logit between the two architectures as a share of the largest (tests/arm64/test_models.py).
SHARE = 2e-3


def packaged(model: Path, folder: Path, *options: object) -> Path:
    """Package a model by the command line, and move the package away from everything that made it."""
    out = folder / "made" / "package"
    out.parent.mkdir()
    command = [
        "package",
        model,
        "--target",
        "linux-arm64",
        "-o",
        out,
        "--onnxruntime",
        arm64_runner(CPU).onnxruntime,
        *options,
    ]
    assert run([str(word) for word in command]) == 0
    elsewhere = folder / "device"
    shutil.move(out, elsewhere)
    assert not any(out.parent.iterdir())
    return elsewhere


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    return convert(DEMO, folder / "demo.onnx", CONFIG).path


@pytest.fixture(scope="module")
def package(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(demo, tmp_path_factory.mktemp("packaged"))


@pytest.fixture(scope="module")
def tiny_package(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packaged(tiny, tmp_path_factory.mktemp("tiny-packaged"), "--format", "both")


def run_alone(package: Path, command: list[str]) -> list[int]:
    """Run a command of the README in the package, under qemu, with nothing from this environment."""
    emulator = arm64_runner(CPU).prefix
    done = subprocess.run(
        ["/usr/bin/env", "-i", *emulator, *command],
        cwd=package,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(token) for token in done.stdout.split()]


def smallest_gap(model: DecoderModel, prompt: list[int], tokens: list[int]) -> tuple[float, float]:
    """How near the second choice came to the first one, and the largest logit."""
    cache, sequence, begin = model.new_cache(), np.array([[*prompt, *tokens[:-1]]]), 0
    gap, largest = np.inf, 0.0
    for end in range(len(prompt), sequence.shape[1] + 1):
        logits = np.sort(model.step(sequence[:, begin:end], cache)[0][0, -1])
        gap, largest, begin = min(gap, logits[-1] - logits[-2]), max(largest, np.abs(logits).max()), end
    return float(gap), float(largest)


def test_the_demo_model_alone_gives_the_tokens_of_this_machine(demo: Path, package: Path) -> None:
    command = runner_line(package)
    prompt, model = prompt_of(command), DecoderModel(demo)
    expected = list(generate(model, prompt, max_new_tokens=48).tokens)
    gap, largest = smallest_gap(model, prompt, expected)
    assert gap > SHARE * largest, "another rounding may make another choice: take another model"
    assert len(set(expected)) > 16
    assert run_alone(package, command) == expected


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_a_small_model_in_both_formats(tiny: Path, tiny_package: Path, suffix: str) -> None:
    command = runner_line(tiny_package)
    command[command.index("--model") + 1] = f"small{suffix}"
    expected = list(generate(DecoderModel(tiny), prompt_of(command), max_new_tokens=48).tokens)
    assert run_alone(tiny_package, command) == expected


def test_files(package: Path, tiny_package: Path) -> None:
    both = {"README.md", "SHA256SUMS", "deltallm_run", "libdeltallm_ops.so", "libonnxruntime.so.1", "licences"}
    both |= {"generation_config.json", "tokenizer.json", "config.json"}
    demo = {"demo.onnx", "demo.onnx.data", "genai_config.json", "tokenizer_config.json"}
    assert {path.name for path in package.iterdir()} == both | demo
    tiny = {"small.onnx", "small.ort", "small.required_operators.config"}
    assert {path.name for path in tiny_package.iterdir()} == both | tiny
    names = {"deltallm-onnx-LICENSE", "onnxruntime-LICENSE", "onnxruntime-ThirdPartyNotices.txt"}
    assert {path.name for path in (package / "licences").iterdir()} == names


def test_binaries_are_those_of_the_target(demo: Path, package: Path) -> None:
    for name in ("deltallm_run", "libdeltallm_ops.so", "libonnxruntime.so.1"):
        assert read_library_file(package / name).machine == "aarch64"
        assert (package / name).stat().st_mode & 0o111
    # The folder that was packaged has this machine's library, for onnxruntime-genai.
    assert read_library_file(demo.with_name("libdeltallm_ops.so")).machine != "aarch64"
    assert '"custom_ops_library": "libdeltallm_ops.so"' in (package / "genai_config.json").read_text()


@pytest.mark.parametrize("which", ["package", "tiny_package"])
def test_checksums(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(which)
    check = ["/usr/bin/env", "sha256sum", "-c", "--strict", "SHA256SUMS"]
    done = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checked = {line.removesuffix(": OK") for line in done.stdout.splitlines()}
    assert checked == files_of(folder) - {"SHA256SUMS"}
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config = copy / "config.json"
    config.write_bytes(config.read_bytes() + b" ")
    done = subprocess.run(check, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "config.json: FAILED" in done.stdout


@pytest.mark.parametrize("which", ["package", "tiny_package"])
def test_no_file_names_a_folder_of_this_machine(which: str, request: pytest.FixtureRequest, tiny: Path) -> None:
    folder: Path = request.getfixturevalue(which)
    # A folder's own name may be another machine's too: /root, /tmp, /home.
    marks = {str(path).encode() for path in (ROOT, tiny.parent, folder.parent, ARM64)}
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [mark for mark in marks if mark in content], path.name


def test_readme_says_what_the_library_says(package: Path) -> None:
    text = readme(package)
    runner = arm64_runner(CPU)
    programs = (runner.program, runner.library, runner.onnxruntime)
    glibc = max(read_library_file(path).glibc or (0, 0) for path in programs)
    assert f"glibc {glibc[0]}.{glibc[1]} or newer" in text
    for path in package.iterdir():
        if path.is_file() and path.name not in {"README.md", "SHA256SUMS"}:
            assert f"| {path.name} | {path.stat().st_size} |" in text, path.name
    assert re.search(r"\d+ tokens take at most [\d.]+ [kM]B beside the program itself \(weights", text)
