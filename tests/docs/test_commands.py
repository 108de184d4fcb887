"""Commands and C++ in the pages on deployment: options, presets and modules are there, and the C++ compiles."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.cpp_runner import ROOT
from support.doc_snippets import DOCS, commands, fenced

PAGES = ("deploy-android.md", "deploy-ios.md", "deploy-linux-arm64.md")
#: Programs of others that are not at hand here, and plain tools.
FOREIGN = {"xcodebuild", "build.sh", "mkdir"}


@functools.cache
def help_of(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


def options(words: list[str]) -> set[str]:
    return {word.split("=")[0] for word in words if word.startswith("--")}


@pytest.mark.parametrize("page", PAGES)
def test_commands(page: str) -> None:
    program = Path(sys.executable).with_name("deltallm-onnx")
    presets = {
        preset["name"] for preset in json.loads((ROOT / "ops" / "CMakePresets.json").read_text())["configurePresets"]
    }
    runner = set(re.findall(r'\{"(--[a-z-]+)"', (ROOT / "examples" / "cpp" / "main.cc").read_text()))
    found = commands(page)
    assert found
    for words in found:
        name = Path(words[0]).name
        if name == "deltallm-onnx":
            known = set(re.findall(r"--[a-z-]+", help_of(str(program), words[1])))
            assert options(words) <= known, words
        elif name == "cmake" and "-S" in words:
            assert (ROOT / words[words.index("-S") + 1] / "CMakeLists.txt").is_file(), words
            if "--preset" in words:
                assert words[words.index("--preset") + 1] in presets, words
        elif name == "cmake":
            folder = words[words.index("--build") + 1]
            assert folder.removeprefix("build/") in presets, words
            target = words[words.index("--target") + 1]
            assert f"add_library({target} " in (ROOT / "ops" / "CMakeLists.txt").read_text()
        elif name in {"deltallm_run", "qemu-aarch64"}:
            assert options(words) <= runner, words
        elif name == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
        elif name == "python":
            assert importlib.util.find_spec(words[2])
            known = set(re.findall(r"--[a-z_]+", help_of(sys.executable, "-m", words[2])))
            assert options(words) <= known, words
        else:
            assert name in FOREIGN or name == "llvm-strip", words


def test_commands_in_running_text() -> None:
    known = set(re.findall(r"--[a-z-]+", help_of(str(Path(sys.executable).with_name("deltallm-onnx")), "convert")))
    assert {"--weights", "--cache-format"} <= known
    presets = (ROOT / "ops" / "CMakePresets.json").read_text()
    for page in PAGES:
        text = (DOCS / page).read_text()
        for preset in re.findall(r"--preset ([a-z0-9-]+)", text):
            assert f'"{preset}"' in presets, preset


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (DOCS / target).exists(), target
    for name in re.findall(r"(?<![\w/])((?:tests|ops|examples)/[\w./-]+)", text):
        assert (ROOT / name.rstrip(".")).exists(), name


def test_cpp_compiles(tmp_path: Path) -> None:
    blocks = [block for page in PAGES for block in fenced(page, "cpp")]
    assert blocks
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    for number, block in enumerate(blocks):
        source = tmp_path / f"block{number}.cc"
        source.write_text(block)
        command = [
            "g++",
            "-std=c++17",
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-isystem",
            headers,
            str(source),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
