"""The presets for Android with a stand-in for the NDK: what it is told, and what the linker would be told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support import arm64

ROOT = Path(__file__).parents[2]
#: Says of itself what the NDK's file says, and takes the compiler for ARM64 Linux.
TOOLCHAIN = f"""
set(ANDROID TRUE)
include({ROOT}/ops/cmake/aarch64-linux.cmake)
"""
VARIABLES = (
    "ANDROID_ABI",
    "ANDROID_PLATFORM",
    "ANDROID_STL",
    "ANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES",
    "CMAKE_BUILD_TYPE",
)


@pytest.mark.parametrize(("preset", "abi"), [("android-arm64", "arm64-v8a"), ("android-x64", "x86_64")])
def test_preset(tmp_path: Path, preset: str, abi: str) -> None:
    assert (arm64.ARM64 / ".ready").is_file(), "run 'make arm64'"
    toolchain = tmp_path / "ndk" / "build" / "cmake" / "android.toolchain.cmake"
    toolchain.parent.mkdir(parents=True)
    toolchain.write_text(TOOLCHAIN)
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    environment = {**os.environ, "ANDROID_NDK": str(tmp_path / "ndk"), "ONNXRUNTIME_INCLUDE_DIR": headers}
    build = tmp_path / "build"
    command = ["cmake", "-S", str(ROOT / "ops"), "--preset", preset, "-B", str(build), "-G", "Unix Makefiles"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cache = dict(
        line.split("=", 1) for line in (build / "CMakeCache.txt").read_text().splitlines() if line[:1].isalpha()
    )
    told = {name.split(":")[0]: value for name, value in cache.items()}
    assert [told[name] for name in VARIABLES] == [abi, "android-24", "c++_static", "ON", "Release"]
    link = (build / "CMakeFiles" / "deltallm_ops.dir" / "link.txt").read_text()
    for flag in ("max-page-size=16384", "-soname,libdeltallm_ops.so", "--version-script=", "--no-undefined"):
        assert f"-Wl,{flag}" in link or f",{flag}" in link, flag
    # The NDK chooses the C++ library by ANDROID_STL.
    assert "-static-libstdc++" not in link
    assert "-lonnxruntime" not in link
    assert "libonnxruntime" not in link
