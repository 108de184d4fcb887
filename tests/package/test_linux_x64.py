"""A package for this machine: its README's Python and C lines, and its .ort in both forms."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from support.command_line import run_here
from support.cpp_runner import ROOT, CppRunner, build_runner, native_runner, own_onnxruntime
from support.packages import files_of, prompt_of, readme, readme_blocks, runner_line

from deltallm_onnx.ort_format import OrtForm
from deltallm_onnx.package import PackageRequest, assemble, package_model
from deltallm_onnx.package.oldest_runtime import oldest_runtime
from deltallm_onnx.runtime import DecoderModel, generate, ops_library_path


@pytest.fixture(scope="module")
def runner() -> CppRunner:
    return native_runner()


@pytest.fixture(scope="module")
def package(tiny: Path, runner: CppRunner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "package"
    request = PackageRequest(tiny, "linux-x64", folder, runner=runner.program, onnxruntime=own_onnxruntime())
    package_model(request)
    return folder


def test_python_lines(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    (program,) = readme_blocks(package, "python")
    program += "print(sorted(output.name for output in session.get_outputs())[-1])\n"
    assert "register_custom_ops_library" in program
    done = subprocess.run([sys.executable, "-"], input=program, cwd=copy, capture_output=True, text=True, check=False)
    assert done.stdout == "statistics.1\n", done.stderr


def test_command_line_of_the_readme(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = re.findall(r"^    DELTALLM_OPS_LIBRARY=(\S+) deltallm-onnx (.*)$", readme(package), re.MULTILINE)
    ((library, command),) = lines
    monkeypatch.chdir(package)
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", library)
    outcome = run_here(capsys, *shlex.split(command), "--max-new-tokens", 5)
    assert outcome.code == 0, outcome.err
    assert len(outcome.out.strip()) >= 4


def test_c_lines_compile(package: Path, tmp_path: Path) -> None:
    source = tmp_path / "open.c"
    source.write_text("".join(readme_blocks(package, "c")))
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    command = ["gcc", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-isystem", headers, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["operator", "fallback"])
def test_ort_in_both_forms(half: Path, runner: CppRunner, tmp_path: Path, form: OrtForm) -> None:
    out, named = tmp_path / "package", tmp_path / "half a model.onnx"
    shutil.copyfile(half, named)
    shutil.copyfile(half.with_name("tokenizer.json"), named.with_name("tokenizer.json"))
    programs = {"runner": runner.program, "onnxruntime": own_onnxruntime()}
    request = PackageRequest(named, "linux-x64", out, "ort", form, **programs)
    result = package_model(request)
    names = {file.name for file in result.files}
    assert {"half a model.ort", "half a model.required_operators.config", "deltallm_run"} <= names
    assert named.name not in names
    assert ("libdeltallm_ops.so" in names) == (form == "operator")
    command = runner_line(out)
    assert ("--ops" in command) == (form == "operator")
    done = subprocess.run(command, cwd=out, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prompt = prompt_of(command)
    model = DecoderModel(half, use_library=form == "operator")
    assert [int(token) for token in done.stdout.split()] == list(generate(model, prompt, max_new_tokens=48).tokens)
    assert f"--ort-form {'fallback' if form == 'operator' else 'operator'}" in readme(out)


def test_an_empty_folder_is_taken(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    inode = empty.stat().st_ino
    monkeypatch.chdir(empty)
    result = package_model(PackageRequest(tiny.resolve(), "linux-x64", Path()))
    assert empty.stat().st_ino == inode
    assert files_of(empty) == {file.name for file in result.files} | {"SHA256SUMS"}
    assert (empty / "libdeltallm_ops.so").read_bytes() == ops_library_path().read_bytes()


def test_what_the_command_prints(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run_here(capsys, "package", tiny, "--target", "linux-x64", "-o", tmp_path / "one", "--context", 77)
    assert outcome.code == 0, outcome.err
    assert f"copied from {ops_library_path()}" in outcome.out
    assert "memory: 77 tokens take at most" in outcome.out
    assert "note: ONNX Runtime is not in the package" in outcome.out
    data = run_here(capsys, "package", tiny, "--target", "linux-x64", "-o", tmp_path / "two", "--json").json
    assert data["target"] == "linux-x64"
    assert {file["name"]: file["sha256"] for file in data["files"]} == {
        line[66:]: line[:64] for line in (tmp_path / "two" / "SHA256SUMS").read_text().splitlines()
    }


def test_the_runner_built_here_is_found(tiny: Path, tmp_path: Path) -> None:
    built = build_runner(ROOT / "build" / "runner")
    package_model(PackageRequest(tiny, "linux-x64", tmp_path / "package"))
    assert (tmp_path / "package" / "deltallm_run").read_bytes() == built.read_bytes()


@pytest.mark.parametrize(
    ("opset", "ir", "node", "release"),
    [
        (18, 8, None, "1.17"),
        (20, 9, None, "1.17"),
        (20, 10, None, "1.20"),
        (21, 10, None, "1.20"),
        (22, 10, None, "1.21"),
        (23, 10, None, "1.23"),
        (23, 11, None, "1.24"),
        (18, 8, ("MatMulNBits", 4), "1.23"),
        (23, 10, ("GatherBlockQuantized", 8), "1.23"),
        (18, 8, ("MatMulNBits", 2), "1.24"),
    ],
)
def test_oldest_runtime(opset: int, ir: int, node: tuple[str, int] | None, release: str) -> None:
    nodes = [onnx.helper.make_node("Add", ["a", "b"], ["c"])]
    if node is not None:
        nodes.append(onnx.helper.make_node(node[0], ["c", "d", "e"], ["f"], domain="com.microsoft", bits=node[1]))
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph(nodes, "g", [], [])
    assert oldest_runtime(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir)) == release


@pytest.mark.parametrize(
    ("target", "platform"), [("linux-x64", "amd64"), ("linux-arm64", "arm"), ("android-arm64", "arm"), ("ios", "arm")]
)
def test_the_processor_that_an_ort_is_made_for(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, platform: str
) -> None:
    asked = []

    def write(source: Path, out: Path, **options: object) -> None:
        asked.append((source, out.name, options))

    monkeypatch.setattr(assemble, "write_ort", write)
    package_model(PackageRequest(tiny, target, tmp_path / "package", "ort"))
    assert asked == [(tiny, "small.ort", {"form": "operator", "platform": platform})]
