"""The static archive for apps that link it in, for which iOS is the reason, linked and run for ARM64 Linux."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from support import arm64
from support.tiny_decoder import LAYERS, save_tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite

ROOT = Path(__file__).parents[2]
ARCHIVE = arm64.LIBRARY.with_suffix(".a")
PROGRAM = Path(__file__).with_name("static_program.cc")


def output_of(program: str, *arguments: object) -> str:
    path = shutil.which(program)
    assert path, program
    done = subprocess.run([path, *map(str, arguments)], cwd=ROOT / "ops", capture_output=True, text=True, check=True)
    return done.stdout


def link(out: Path, *definitions: str) -> subprocess.CompletedProcess[str]:
    """Compile the program and link it with the archive."""
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    includes = ["-isystem", headers, "-I", str(ROOT / "ops")]
    search = os.pathsep.join([os.environ["PATH"], str(arm64.ARM64 / "tools" / "bin")])
    command = ["env", f"PATH={search}", "aarch64-linux-gnu-g++", "-std=c++17", *definitions, *includes, str(PROGRAM)]
    return subprocess.run([*command, str(ARCHIVE), "-o", str(out)], capture_output=True, text=True, check=False)


def test_two_operator_libraries_in_one_program(tmp_path: Path) -> None:
    program = tmp_path / "app"
    linked = link(program)
    assert linked.returncode == 0, linked.stderr
    dense = save_tiny_decoder(tmp_path / "model")
    model = rewrite(dense, dense.with_name("int8.onnx"), DeltaConfig(window=9, cache_format="int8")).path
    runner = arm64.arm64_runner("cortex-a76")
    done = subprocess.run(
        [*runner.prefix, program, runner.onnxruntime, model], capture_output=True, text=True, check=False
    )
    # Token ids, mask, positions and the caches of every layer.
    assert done.stdout == f"inputs {3 + 2 * LAYERS} others 1\n", done.stdout + done.stderr


def test_the_archive_defines_one_name_for_apps() -> None:
    listed = output_of("nm", "--defined-only", "-g", ARCHIVE)
    names = {line.split()[-1] for line in listed.splitlines() if " T " in line}
    assert "DeltaLLMRegisterCustomOps" in names
    assert "RegisterCustomOps" not in names
    # All others are C++ names in a namespace of ours, or those of templates of the standard library.
    assert all(name.startswith("_Z") for name in names - {"DeltaLLMRegisterCustomOps"})


def test_presets_are_read_here() -> None:
    listed = output_of("cmake", "--list-presets")
    assert re.findall('^  "(.*)"', listed, re.MULTILINE) == [
        "linux-x64",
        "linux-arm64",
        "android-arm64",
        "android-x64",
    ]


def test_presets_set_options_that_there_are() -> None:
    """Also the one for iOS, which cmake shows on a Mac only."""
    options = set(re.findall(r"option\((DELTALLM_\w+)", (ROOT / "ops" / "CMakeLists.txt").read_text()))
    presets = json.loads((ROOT / "ops" / "CMakePresets.json").read_text())["configurePresets"]
    variables = {name for preset in presets for name in preset.get("cacheVariables", {})}
    ours = {name for name in variables if name.startswith("DELTALLM_")}
    assert {"DELTALLM_STATIC", "DELTALLM_STATIC_LIBSTDCXX", "DELTALLM_WERROR"} == ours
    assert ours <= options
