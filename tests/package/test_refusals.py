"""What `package` refuses: one sentence with the name at fault, exit code 2, and nothing written."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support import arm64
from support.command_line import files_below, run_here
from support.cpp_runner import own_onnxruntime
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.package import PackageRequest, assemble, targets
from deltallm_onnx.runtime import ops_library_path

Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command, see that it refuses and leaves nothing, and give the sentence."""
    numbers = itertools.count()

    def run(model: Path, target: str, *options: object, out: Path | None = None) -> str:
        folder = out or tmp_path / f"out{next(numbers)}"
        before = files_below(tmp_path)
        outcome = run_here(capsys, "package", model, "--target", target, "-o", folder, *options)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("\n") == 1
        assert "bug" not in outcome.err
        assert files_below(tmp_path) == before
        assert out is not None or not folder.exists()
        return outcome.err

    return run


def test_a_library_for_another_processor(tiny: Path, refuse: Refuse) -> None:
    said = refuse(tiny, "linux-arm64", "--library", ops_library_path())
    assert str(ops_library_path()) in said
    assert "is built for x86_64, and linux-arm64 needs aarch64" in said
    assert "make arm64" in said
    said = refuse(tiny, "linux-x64", "--library", arm64.LIBRARY)
    assert "is built for aarch64, and linux-x64 needs x86_64" in said


def test_a_library_for_linux_is_none_for_android(tiny: Path, refuse: Refuse) -> None:
    said = refuse(tiny, "android-arm64", "--library", arm64.LIBRARY)
    assert f"{arm64.LIBRARY} is built for Linux, and does not load on Android" in said
    assert "cmake -S ops --preset android-arm64" in said
    assert "is no static archive for iOS" in refuse(tiny, "ios", "--library", arm64.LIBRARY)


def test_a_static_archive_for_linux_is_none_for_ios(tiny: Path, refuse: Refuse) -> None:
    said = refuse(tiny, "ios", "--library", arm64.LIBRARY.with_suffix(".a"))
    assert "is an ELF object" in said


def test_a_damaged_library(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    content = arm64.LIBRARY.read_bytes()
    library = tmp_path / "libdeltallm_ops.so"
    for damaged in (content[: len(content) // 2], b"", b"#!/bin/sh\n" + content, content[:64]):
        library.write_bytes(damaged)
        said = refuse(tiny, "linux-arm64", "--library", library)
        assert f"{library} is no shared library for 64-bit Linux" in said


def test_a_library_that_is_not_ours(tiny: Path, refuse: Refuse) -> None:
    said = refuse(tiny, "linux-x64", "--library", own_onnxruntime())
    assert str(own_onnxruntime()) in said
    assert "exports no RegisterCustomOps, so it is not the operator library" in said


def test_files_that_are_not_there(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    missing = tmp_path / "missing.so"
    for option in ("--library", "--runner", "--onnxruntime"):
        assert f"{option} names {missing}, which is no" in refuse(tiny, "linux-x64", option, missing)
    assert "which is a folder" in refuse(tiny, "linux-x64", "--library", tmp_path)
    assert f"There is no file {tmp_path / 'no.onnx'}" in refuse(tmp_path / "no.onnx", "linux-x64")


def test_a_missing_library_says_what_builds_it(
    tiny: Path, refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "checkout"
    (elsewhere / "ops").mkdir(parents=True)
    (elsewhere / "ops" / "CMakeLists.txt").write_text("")
    monkeypatch.setattr(targets, "_ROOT", elsewhere)
    said = refuse(tiny, "linux-arm64")
    assert "There is no operator library for linux-arm64" in said
    assert "build/arm64/ops/libdeltallm_ops.so" in said
    assert "build it with 'make arm64', or name one with --library FILE" in said


def test_an_installed_wheel_has_no_sources(tiny: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_ROOT", tiny.parent)
    said = refuse(tiny, "linux-arm64")
    assert "'make arm64' in a checkout of deltallm-onnx's sources" in said
    for target in ("android-arm64", "ios"):
        said = refuse(tiny, target)
        assert f"There is no operator library for {target}, and an installed wheel has no sources of it" in said


def test_programs(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    other = arm64.ARM64 / "runner" / "deltallm_run"
    assert f"{other} is built for aarch64, and linux-x64 needs x86_64" in refuse(tiny, "linux-x64", "--runner", other)
    said = refuse(tiny, "linux-x64", "--runner", ops_library_path())
    assert "is not the C++ runner, for it never asks for OrtGetApiBase" in said
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    assert f"{script} is not the C++ runner (" in refuse(tiny, "linux-x64", "--runner", script)
    said = refuse(tiny, "linux-x64", "--onnxruntime", ops_library_path())
    assert "has no OrtGetApiBase, so it is not ONNX Runtime" in said
    assert "is built for x86_64" in refuse(tiny, "linux-arm64", "--onnxruntime", own_onnxruntime())
    old = tmp_path / "libonnxruntime.so.1.16.3"
    shutil.copyfile(own_onnxruntime(), old)
    assert f"{old} is ONNX Runtime 1.16.3, and {tiny} needs 1." in refuse(tiny, "linux-x64", "--onnxruntime", old)
    for option in ("--runner", "--onnxruntime"):
        assert f"{option} is for Linux" in refuse(tiny, "android-arm64", option, other)


def test_float16_caches_for_ios(half: Path, refuse: Refuse) -> None:
    said = refuse(half, "ios")
    assert f"{half} has float16 caches" in said
    assert "ORTTensorElementDataType has no Float16" in said
    assert "--cache-format int8, int4 or float32" in said


def test_targets_and_formats(tiny: Path, refuse: Refuse) -> None:
    said = refuse(tiny, "windows")
    assert "There is no target 'windows': choose one of linux-x64, linux-arm64, android-arm64, ios." in said
    assert "There is no format 'pt': choose one of onnx, ort, both." in refuse(tiny, "ios", "--format", "pt")
    said = refuse(tiny, "ios", "--format", "ort", "--ort-form", "both")
    assert "There is no ort-form 'both': choose one of operator, fallback." in said
    assert "give --format ort or both too" in refuse(tiny, "linux-x64", "--ort-form", "fallback")
    said = refuse(tiny, "linux-x64", "--format", "ort", "--ort-form", "fallback", "--library", ops_library_path())
    assert "leave out --library" in said


def test_a_packed_cache_has_no_fallback(tiny: Path, refuse: Refuse) -> None:
    for model_format in ("ort", "both"):
        said = refuse(tiny, "linux-x64", "--format", model_format, "--ort-form", "fallback")
        assert f"{tiny} has no function body for DeltaAttention" in said


def test_folders(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    assert f"The folder {full} is not empty: give a new one." in refuse(tiny, "linux-x64", out=full)
    file = full / "mine.txt"
    assert f"{file} is a file, and a package is a folder" in refuse(tiny, "linux-x64", out=file)
    deep = tmp_path / "a" / "b"
    assert f"The folder {deep.parent} does not exist" in refuse(tiny, "linux-x64", out=deep)
    assert not deep.parent.exists()
    # What holds the model holds something.
    assert "is not empty" in refuse(tiny, "linux-x64", out=tiny.parent)


def test_models(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    dense = save_tiny_decoder(tmp_path / "dense")
    assert f"{dense} has no delta attention" in refuse(dense, "linux-x64")
    ort_model = tmp_path / "small.ort"
    ort_model.write_bytes(b"ORTM")
    assert "is an .ort already: name the .onnx" in refuse(ort_model, "linux-x64", "--format", "ort")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(tiny.read_bytes()[:1000])
    assert f"{broken} is not an ONNX model" in refuse(broken, "linux-x64")
    assert f"{tmp_path} is a directory" in refuse(tmp_path, "linux-x64")


def test_context(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    assert "context is 0" in refuse(tiny, "linux-x64", "--context", 0)
    proto = onnx.load(tiny)
    for value in [*proto.graph.input, *proto.graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[2].dim_value = 61
    fixed = tmp_path / "fixed.onnx"
    onnx.save(proto, fixed)
    assert "caches of 61 rows, and 62 tokens need 62" in refuse(fixed, "linux-x64", "--context", 62)


@pytest.mark.parametrize("name", ["SHA256SUMS", "libdeltallm_ops.so", "model.required_operators.config"])
def test_weights_with_a_name_of_the_package(tiny: Path, refuse: Refuse, tmp_path: Path, name: str) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(onnx.load(tiny), model, save_as_external_data=True, location=name, size_threshold=0)
    assert f"{model} keeps weights in {name}" in refuse(model, "linux-x64")


def test_a_broken_configuration(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    model = tmp_path / "model" / tiny.name
    model.parent.mkdir()
    shutil.copyfile(tiny, model)
    for name in ("special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"):
        (model.parent / name).write_text('{"a": ')
        assert str(model.parent / name) in refuse(model, "linux-x64"), name
        (model.parent / name).unlink()


def test_links(tiny: Path, refuse: Refuse, tmp_path: Path) -> None:
    """A folder from elsewhere could send any file of this machine along."""
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    for name in ("vocab.json", "config.json", "small.deltallm.json", "genai_config.json"):
        model = tmp_path / name.replace(".", "-") / tiny.name
        model.parent.mkdir()
        shutil.copyfile(tiny, model)
        model.with_name(name).symlink_to(secret)
        assert f"{model.with_name(name)} is a symbolic link" in refuse(model, "linux-x64")


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_the_end_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, failure: BaseException
) -> None:
    def fail(_: Path) -> None:
        raise failure

    monkeypatch.setattr(assemble, "write_checksums", fail)
    out = tmp_path / "package"
    if existing:
        out.mkdir()
    with pytest.raises((DeltaLLMError, KeyboardInterrupt)):
        assemble.package_model(PackageRequest(tiny, "linux-x64", out))
    assert [*tmp_path.rglob("*")] == ([out] if existing else [])


def test_no_room_on_disk(tiny: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltallm_onnx.preflight.free_disk", lambda _: 1000)
    assert "The package takes up to" in refuse(tiny, "linux-x64")
