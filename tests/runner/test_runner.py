"""The C++ program of examples/cpp makes the tokens that the Python runtime makes, and refuses in one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.cpp_runner import CppRunner, RunnerOutcome
from support.ort_models import to_ort
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.convert import rewrite
from deltallm_onnx.packed_sizes import PackedSizes, bytes_per_token
from deltallm_onnx.runtime import DecoderModel, generate

PROMPT = [7, 4, 11, 11, 14, 26, 22, 14, 17, 11, 3]
#: 200 tokens in the cache: 32 exact ones, and more than the 128 coded ones that int4 seals in a block.
NEW = 190
FORMATS = ("float32", "float16", "int8", "int4")
SINKS, WINDOW = 3, 29
COARSE = DeltaConfig(threshold=1.3, window=WINDOW, sinks=SINKS, prefill="delta")


@pytest.fixture(scope="module")
def rewritten(dense_path: Path) -> Callable[[str], Path]:
    """The model with caches of a format, made once."""
    made: dict[str, Path] = {}

    def make(cache_format: str) -> Path:
        if cache_format not in made:
            path = dense_path.with_name(f"{cache_format}.onnx")
            made[cache_format] = rewrite(dense_path, path, COARSE.replace(cache_format=cache_format)).path
        return made[cache_format]

    return make


def python_tokens(model: Path, new: int = NEW) -> list[int]:
    return generate(DecoderModel(model), PROMPT, max_new_tokens=new).tokens


def refused(outcome: RunnerOutcome, *parts: object) -> None:
    assert outcome.code == 2
    assert outcome.tokens == []
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for part in parts:
        assert str(part) in outcome.err, outcome.err


def rows(cache_format: str, tokens: int) -> int:
    """What the Python runtime's rule gives for a cache of exactly so many tokens."""
    needed = tokens
    if cache_format in {"int8", "int4"}:
        needed = PackedSizes(cache_format, HEAD_SIZE, SINKS, WINDOW).rows_needed(tokens)
    return (needed + 15) // 16 * 16


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
@pytest.mark.parametrize("cache_format", FORMATS)
def test_tokens_are_those_of_python(
    runner: CppRunner, rewritten: Callable[[str], Path], cache_format: str, suffix: str
) -> None:
    model = rewritten(cache_format)
    expected = python_tokens(model)
    assert len(set(expected)) > VOCABULARY // 2, "tokens that hardly change prove little"
    outcome = runner(to_ort(model, runner.library) if suffix == ".ort" else model, PROMPT, NEW)
    assert outcome.code == 0, outcome.err
    assert outcome.tokens == expected
    sizes = {"float32": 4 * HEAD_SIZE, "float16": 2 * HEAD_SIZE}
    row_bytes = sizes.get(cache_format) or bytes_per_token(cache_format, HEAD_SIZE)
    assert outcome.cache_bytes == 2 * LAYERS * KV_HEADS * row_bytes * rows(cache_format, len(PROMPT) + NEW - 1)


@pytest.mark.parametrize("cache_format", ["float32", "int4"])
def test_prompt_in_chunks(runner: CppRunner, rewritten: Callable[[str], Path], cache_format: str) -> None:
    model = rewritten(cache_format)
    outcome = runner(model, PROMPT, 50, "--chunk", 4, "--threads", 2)
    assert outcome.tokens == python_tokens(model, 50), outcome.err


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_dense_model(runner: CppRunner, dense_path: Path, suffix: str) -> None:
    model = to_ort(dense_path, None) if suffix == ".ort" else dense_path
    outcome = runner(model, PROMPT, NEW, "--copy-caches", 1, library=False)
    assert outcome.tokens == python_tokens(dense_path), outcome.err


def test_group_query_attention_in_place(runner: CppRunner, tmp_path: Path) -> None:
    path = save_tiny_decoder(tmp_path, grouped_query=True)
    outcome = runner(path, PROMPT, NEW, library=False)
    assert outcome.tokens == python_tokens(path), outcome.err
    assert outcome.cache_bytes == 2 * LAYERS * KV_HEADS * 4 * HEAD_SIZE * rows("float32", len(PROMPT) + NEW - 1)


def test_function_bodies_without_the_library(runner: CppRunner, dense_path: Path) -> None:
    path = dense_path.with_name("bodies.onnx")
    rewrite(dense_path, path, COARSE.replace(cache_format="float32"))
    outcome = runner(path, PROMPT, 30, "--copy-caches", 1, library=False)
    assert outcome.tokens == generate(DecoderModel(path, use_library=False), PROMPT, max_new_tokens=30).tokens


def test_end_of_text(runner: CppRunner, rewritten: Callable[[str], Path]) -> None:
    expected = python_tokens(rewritten("int8"))
    last = expected[7]
    outcome = runner(rewritten("int8"), PROMPT, NEW, "--eos", last)
    assert outcome.tokens == expected[: expected.index(last) + 1]


def fix_rows(model: Path, rows: int, out: Path) -> Path:
    """The model with so many rows in the shape of every cache."""
    proto = onnx.load(model)
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[2].dim_value = rows
    onnx.save(proto, out)
    return out


def test_fixed_rows_are_kept(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    exact = PackedSizes("int4", HEAD_SIZE, SINKS, WINDOW).rows_needed(len(PROMPT) + NEW - 1)
    assert exact % 16, "a capacity of whole tiles would prove nothing"
    model = fix_rows(rewritten("int4"), exact, tmp_path / "fixed.onnx")
    outcome = runner(model, PROMPT, NEW)
    assert outcome.tokens == python_tokens(rewritten("int4")), outcome.err
    row_bytes = bytes_per_token("int4", HEAD_SIZE)
    assert outcome.cache_bytes == 2 * LAYERS * KV_HEADS * row_bytes * exact
    few = fix_rows(rewritten("int4"), exact - 1, tmp_path / "few.onnx")
    refused(runner(few, PROMPT, NEW), few, f"at {exact - 1} rows", f"need {exact}")


# Refusals.


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_without_the_library(runner: CppRunner, rewritten: Callable[[str], Path], suffix: str) -> None:
    model = rewritten("int8")  # packed caches have no function body
    model = to_ort(model, runner.library) if suffix == ".ort" else model
    refused(
        runner(model, PROMPT, 3, library=False), model, "libdeltallm_ops.so", "--ops", "RegisterCustomOpsLibrary_V2"
    )


def test_library_that_is_not_there(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    missing = tmp_path / "libdeltallm_ops.so"
    refused(runner(rewritten("int8"), PROMPT, 3, "--ops", missing), missing, "operator library")


def other_machine(library: Path, out: Path) -> Path:
    """The library, marked as built for the other of x86-64 and AArch64."""
    content = bytearray(library.read_bytes())
    content[18:20] = (0xB7 if content[18:20] == b"\x3e\x00" else 0x3E).to_bytes(2, "little")
    out.write_bytes(content)
    return out


def test_library_of_another_processor(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    other = other_machine(runner.library, tmp_path / "libdeltallm_ops.so")
    refused(runner(rewritten("int8"), PROMPT, 3, "--ops", other), other, "built for this processor")


def test_runtime_of_another_processor(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    other = other_machine(runner.onnxruntime, tmp_path / "libonnxruntime.so.1")
    refused(runner(rewritten("int8"), PROMPT, 3, "--ort", other), other, "for this processor with --ort")


def test_runtime_that_is_none(runner: CppRunner, rewritten: Callable[[str], Path]) -> None:
    refused(runner(rewritten("int8"), PROMPT, 3, "--ort", "libm.so.6"), "libm.so.6 is not ONNX Runtime")


def test_runtime_that_is_too_old(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    stub = tmp_path / "libonnxruntime.so.1.16.3"
    source = """
    static const char* Version(void) { return "1.16.3"; }
    static const void* Api(unsigned version) { (void)version; return 0; }
    static const struct { const void* (*api)(unsigned); const char* (*version)(void); } base = {Api, Version};
    const void* OrtGetApiBase(void) { return &base; }
    """
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(stub)], input=source, text=True, check=True)
    refused(runner(rewritten("int8"), PROMPT, 3, "--ort", stub), stub, "1.16.3", "1.17 or newer is needed")


@pytest.mark.parametrize("cache_format", ["float32", "int8", "int4"])
def test_capacity_too_small(runner: CppRunner, rewritten: Callable[[str], Path], cache_format: str) -> None:
    model, room = rewritten(cache_format), len(PROMPT) + 4
    assert runner(model, PROMPT, 5, "--capacity", room).tokens == python_tokens(model, 5)
    outcome = runner(model, PROMPT, 6, "--capacity", room)
    assert outcome.code == 2
    assert f"hold {room} tokens, and {room + 1} are to be stored" in outcome.err
    refused(runner(model, PROMPT, 6, "--capacity", 5), "hold 5 tokens", "--capacity")


def test_dense_model_without_copies(runner: CppRunner, dense_path: Path) -> None:
    refused(runner(dense_path, PROMPT, 3, library=False), dense_path, "--copy-caches 1")


def test_an_input_that_it_cannot_supply(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    proto = onnx.load(rewritten("float32"))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, [1, 3]))
    onnx.save(proto, tmp_path / "pixels.onnx")
    refused(runner(tmp_path / "pixels.onnx", PROMPT, 3), "input pixels", "convert the model again")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--tokens", "1,x"), ("--tokens has 'x'", "whole numbers")),
        (("--tokens", ""), ("--tokens has ''",)),
        (("--new", "-3"), ("--new has '-3'",)),
        (("--new", "1e3"), ("--new has '1e3'",)),
        (("--capacity", "99999999999999999999"), ("--capacity has",)),
        (("--tokens", VOCABULARY), ("out of data bounds",)),
        (("--model", "nowhere.ort"), ("nowhere.ort is no readable file",)),
        (("--speed", "1"), ("--speed", "README.md")),
        (("--chunk",), ("--chunk", "README.md")),
    ],
)
def test_wrong_options(
    runner: CppRunner, rewritten: Callable[[str], Path], options: tuple[object, ...], parts: tuple[str, ...]
) -> None:
    refused(runner(rewritten("int8"), PROMPT, 3, *options), *parts)
