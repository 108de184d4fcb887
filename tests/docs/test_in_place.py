"""The calls of the C API behind the mobile code: operators by name or by function, caches in place with plain Run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.cpp_runner import ROOT, own_onnxruntime
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.packed_sizes import PackedSizes
from deltallm_onnx.runtime import DecoderModel, generate, ops_library_path

PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]
NEW = 190
SINKS, WINDOW = 3, 29
CONFIG = DeltaConfig(threshold=1.3, window=WINDOW, sinks=SINKS, prefill="delta")

Program = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """in_place_program.cc; the loader finds the operator library by its bare name, as Android's does."""
    folder = tmp_path_factory.mktemp("in_place")
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    source = Path(__file__).with_name("in_place_program.cc")
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", headers, "-I", str(ROOT / "ops")]
    command += [str(source), "-ldl", "-o", str(folder / "app")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library = shutil.copy(ops_library_path(), folder / "libdeltallm_ops.so")

    def call(register: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        given = [folder / "app", own_onnxruntime(), library, register, *arguments]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        return subprocess.run(
            [str(part) for part in given], env=environment, capture_output=True, text=True, timeout=200, check=False
        )

    return call


@pytest.mark.parametrize(("cache_format", "register"), [("int8", "library"), ("int4", "pointer")])
def test_tokens_are_those_of_python(program: Program, tmp_path: Path, cache_format: str, register: str) -> None:
    dense = save_tiny_decoder(tmp_path)
    model = rewrite(dense, dense.with_name("packed.onnx"), CONFIG.replace(cache_format=cache_format)).path
    expected = generate(DecoderModel(model), PROMPT, max_new_tokens=NEW).tokens
    assert len(set(expected)) > VOCABULARY // 2, "tokens that hardly change prove little"
    sizes = PackedSizes(cache_format, HEAD_SIZE, SINKS, WINDOW)
    shape = (LAYERS, KV_HEADS, sizes.rows_needed(len(PROMPT) + NEW), sizes.bytes_per_token)
    done = program(register, model, *shape, NEW, *PROMPT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [int(token) for token in done.stdout.split()] == expected
    small = (*shape[:2], sizes.rows_needed(len(PROMPT) + NEW - 60), shape[3])
    refused = program(register, model, *small, NEW, *PROMPT)
    assert refused.returncode == 1
    assert "but the computed output shape for this run is" in refused.stdout
