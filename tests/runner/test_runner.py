"""The C++ program of examples/cpp makes the tokens that the Python runtime makes, and refuses in one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.cpp_runner import ROOT, CppRunner, RunnerOutcome
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


@pytest.mark.parametrize("cache_format", ["float32", "int4"])
def test_a_mapped_model(runner: CppRunner, rewritten: Callable[[str], Path], cache_format: str) -> None:
    model = to_ort(rewritten(cache_format), runner.library)
    for mapped in (0, 1):
        outcome = runner(model, PROMPT, 30, "--mmap", mapped)
        assert outcome.tokens == python_tokens(rewritten(cache_format), 30), outcome.err


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


def test_it_stays_short() -> None:
    sources = [path for path in (ROOT / "examples" / "cpp").iterdir() if path.suffix in {".cc", ".h"}]
    assert {path.name for path in sources} >= {"main.cc", "decoder.h"}
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources) < 300


# Refusals.


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
def test_without_the_library(runner: CppRunner, rewritten: Callable[[str], Path], suffix: str) -> None:
    model = rewritten("int8")  # packed caches have no function body
    model = to_ort(model, runner.library) if suffix == ".ort" else model
    refused(
        runner(model, PROMPT, 3, library=False), model, "libdeltallm_ops.so", "--ops", "RegisterCustomOpsLibrary_V2"
    )


def without_config(model: Path, out: Path) -> Path:
    """The model without what a rewriting records about itself."""
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.save(proto, out)
    return out


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_packed_caches_of_unknown_size(
    runner: CppRunner, rewritten: Callable[[str], Path], cache_format: str, tmp_path: Path
) -> None:
    model = without_config(rewritten(cache_format), tmp_path / "bare.onnx")
    refused(runner(model, PROMPT, 3), model, "packed caches", "no deltallm.config in its metadata", "convert it again")


def test_plain_caches_need_no_configuration(
    runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path
) -> None:
    model = without_config(rewritten("float16"), tmp_path / "bare.onnx")
    assert runner(model, PROMPT, 3).tokens == python_tokens(model, 3)


def test_a_data_file_that_is_not_there(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    model, data = tmp_path / "apart.onnx", tmp_path / "apart.onnx.data"
    onnx.save(onnx.load(rewritten("int8")), model, save_as_external_data=True, location=data.name, size_threshold=0)
    assert runner(model, PROMPT, 3).tokens == python_tokens(rewritten("int8"), 3)
    data.unlink()
    refused(runner(model, PROMPT, 3), model, "with its data", data.name)


@pytest.mark.parametrize("suffix", [".onnx", ".ort"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_a_file_that_is_not_whole(
    runner: CppRunner, rewritten: Callable[[str], Path], suffix: str, kept: float, tmp_path: Path
) -> None:
    whole = rewritten("int8")
    content = (to_ort(whole, runner.library) if suffix == ".ort" else whole).read_bytes()
    part = tmp_path / f"part{suffix}"
    part.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    refused(runner(part, PROMPT, 3), part, "cannot be opened")


def test_a_folder_as_the_model(runner: CppRunner, tmp_path: Path) -> None:
    refused(runner(tmp_path, PROMPT, 3), tmp_path, "cannot be opened")


def test_library_that_is_not_there(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    missing = tmp_path / "libdeltallm_ops.so"
    refused(runner(rewritten("int8"), PROMPT, 3, "--ops", missing), missing, "operator library")


MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}


def other_machine(library: Path, out: Path) -> tuple[Path, str]:
    """The library, marked as built for the other of x86-64 and AArch64, and the sentence about it."""
    content = bytearray(library.read_bytes())
    own = int.from_bytes(content[18:20], "little")
    (other,) = set(MACHINES) - {own}
    content[18:20] = other.to_bytes(2, "little")
    out.write_bytes(content)
    return out, f"{out} is built for {MACHINES[other]}, and this program for {MACHINES[own]}: name "


def test_library_of_another_processor(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    other, sentence = other_machine(runner.library, tmp_path / "libdeltallm_ops.so")
    refused(runner(rewritten("int8"), PROMPT, 3, "--ops", other), sentence, "the operator library", "with --ops")


def test_runtime_of_another_processor(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    other, sentence = other_machine(runner.onnxruntime, tmp_path / "libonnxruntime.so.1")
    refused(runner(rewritten("int8"), PROMPT, 3, "--ort", other), sentence, "ONNX Runtime's library", "with --ort")


def test_a_library_that_is_none(runner: CppRunner, rewritten: Callable[[str], Path], tmp_path: Path) -> None:
    text = tmp_path / "libdeltallm_ops.so"
    text.write_text("a page that a download left")
    refused(runner(rewritten("int8"), PROMPT, 3, "--ops", text), text, "name the operator library", "with --ops")


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
    # Before anything is read or printed.
    refused(runner(model, PROMPT, 6, "--capacity", room), f"hold {room} tokens, and {room + 1} are to be stored")
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
