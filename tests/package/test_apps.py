"""Packages for Android and iOS: sources or a built library, lines of the pages, the model's own numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import arm64
from support.command_line import files_below, run_here
from support.doc_snippets import fenced
from support.macho import MACOS, SIMULATOR, X86_64, archive, macho_object
from support.packages import CONFIG, files_of, readme, readme_blocks
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, VOCABULARY

from deltallm_onnx import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.package import PackageRequest, package_model
from deltallm_onnx.package.library import check_library
from deltallm_onnx.package.targets import TARGETS
from deltallm_onnx.packed_sizes import PackedSizes

ROOT = Path(__file__).parents[2]
APPS = ("android-arm64", "ios")
NAMES = ("RegisterCustomOps", "DeltaLLMRegisterCustomOps")


@pytest.fixture(scope="module", params=APPS)
def package(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / str(request.param)
    package_model(PackageRequest(tiny, request.param, folder))
    return folder


def test_sources_are_those_of_the_checkout(package: Path) -> None:
    sources = files_below(package / "ops")
    assert len(sources) > 100
    for path, content in sources.items():
        assert content == (ROOT / path.relative_to(package)).read_bytes()
    included = re.findall(rb'#include "([^"]+)"', b"".join(sources.values()))
    assert included
    for name in included:
        assert (package / "ops" / name.decode()).is_file(), name
    assert not (package / "ops" / "tests").exists()


def test_sources_are_whole(package: Path, tmp_path: Path) -> None:
    """CMake looks for every source of every library when it configures."""
    headers = (ROOT / "build" / "ort-headers" / ".ready").read_text().strip()
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    environment = {**os.environ, "ONNXRUNTIME_INCLUDE_DIR": headers}
    for processor in ("aarch64", "x86_64"):
        command = ["cmake", "-S", "ops", "-B", f"build-{processor}", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"]
        command += ["-DCMAKE_SYSTEM_NAME=Linux"]
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_configuration_of_onnxruntime_genai(tiny: Path, tmp_path: Path) -> None:
    """It names the target's library for Android, and goes nowhere else where it could not be used."""
    model = tmp_path / tiny.name
    shutil.copyfile(tiny, model)
    decoder = {"filename": model.name, "session_options": {"custom_ops_library": "old.so", "log_id": "mine"}}
    config = tmp_path / "genai_config.json"
    config.write_text(json.dumps({"model": {"decoder": decoder, "context_length": 77}}))
    result = package_model(PackageRequest(model, "android-arm64", tmp_path / "android"))
    written = json.loads((tmp_path / "android" / config.name).read_text())["model"]
    assert written["decoder"]["session_options"] == {"custom_ops_library": "libdeltallm_ops.so", "log_id": "mine"}
    assert result.memory.startswith("77 tokens take")
    for target, model_format in (("ios", "onnx"), ("android-arm64", "ort")):
        out = tmp_path / f"{target}-{model_format}"
        result = package_model(PackageRequest(model, target, out, model_format))
        assert not (out / config.name).exists()
        assert any(note.startswith("genai_config.json was left out") for note in result.notes)
    # Lengths that are none are no lengths.
    for content, named in (
        ({"decoder": {"filename": "other.onnx"}, "context_length": True}, "other.onnx"),
        ({"decoder": 3, "context_length": -5}, "no model"),
    ):
        config.write_text(json.dumps({"model": content}))
        result = package_model(PackageRequest(model, "android-arm64", tmp_path / named))
        assert f"genai_config.json was left out: it names {named}, not small.onnx." in result.notes
        assert result.memory.startswith("1024 tokens take")


def test_what_was_not_done_is_said(package: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = readme(package)
    assert "Nothing here was run" in text
    assert "libdeltallm_ops" not in {path.stem for path in package.iterdir()}
    out = package.with_name(f"{package.name}-again")
    outcome = run_here(capsys, "package", tiny, "--target", package.name, "-o", out)
    assert outcome.code == 0, outcome.err
    assert (
        f"note: There is no operator library for {package.name} here, so its sources are in the package" in outcome.out
    )
    assert "note: Nothing of this package was run" in outcome.out
    # The same request, the same bytes.
    assert {path.relative_to(out): content for path, content in files_below(out).items()} == {
        path.relative_to(package): content for path, content in files_below(package).items()
    }


def test_lines_are_those_of_the_pages(package: Path) -> None:
    """Whose calls are held against ONNX Runtime's own declarations (tests/docs)."""
    page, languages = {"android-arm64": ("deploy-android.md", ("kotlin",)), "ios": ("deploy-ios.md", ("swift", "c"))}[
        package.name
    ]
    for language in languages:
        known = {line.strip() for block in fenced(page, language) for line in block.splitlines()}
        first, *rest = readme_blocks(package, language)
        lines = [line.strip().replace('"small.onnx"', '"model.onnx"') for line in first.splitlines()]
        assert len(lines) > 3
        assert not [line for line in lines if line not in known], language
        assert all("try Decoder(modelPath: modelPath, kvHeads:" in block for block in rest)


def test_commands_are_those_of_the_pages(package: Path) -> None:
    page = (ROOT / "docs" / f"deploy-{'ios' if package.name == 'ios' else 'android'}.md").read_text()
    for command in TARGETS[package.name].commands:
        assert f"    {command}\n" in readme(package)
        assert f"    {command}\n" in page


@pytest.mark.parametrize("cache_format", ["int8", "int4", "float32"])
def test_numbers_for_swift(tiny: Path, tmp_path: Path, cache_format: str) -> None:
    model = rewrite(
        tiny.with_name("tiny.onnx"), tmp_path / "numbers.onnx", CONFIG.replace(cache_format=cache_format)
    ).path
    package_model(PackageRequest(model, "ios", tmp_path / "package", context=190))
    rows, row_size, kind = 190, HEAD_SIZE, "float32"
    if cache_format != "float32":
        sizes = PackedSizes(cache_format, HEAD_SIZE, CONFIG.sinks, CONFIG.window)
        rows, row_size, kind = sizes.rows_needed(190), sizes.bytes_per_token, "uint8"
    (decoder,) = readme_blocks(tmp_path / "package", "swift")[1:]
    numbers = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", decoder)}
    assert 0 <= numbers.pop("rows") - rows < 16, "rows are rounded up to tiles"
    assert numbers == {"kvHeads": KV_HEADS, "rowSize": row_size, "vocabulary": VOCABULARY, "threads": 2}
    assert f"| 0–1 | {KV_HEADS} |" in readme(tmp_path / "package")
    assert f"| {row_size} | {kind} |" in readme(tmp_path / "package")


@pytest.mark.parametrize("target", APPS)
def test_without_the_library_the_caches_are_apart(tiny: Path, tmp_path: Path, target: str) -> None:
    model = rewrite(tiny.with_name("tiny.onnx"), tmp_path / "bodies.onnx", CONFIG.replace(cache_format="float32")).path
    result = package_model(PackageRequest(model, target, tmp_path / "package", "ort", "fallback"))
    assert result.library is None
    assert files_of(tmp_path / "package") == {
        "README.md",
        "SHA256SUMS",
        "bodies.ort",
        "bodies.required_operators.config",
        "licences/deltallm-onnx-LICENSE",
    }
    text = readme(tmp_path / "package")
    assert "past and present caches must be apart" in text
    for word in (
        "libdeltallm_ops",
        "RegisterCustomOps",
        "registerCustomOp",
        "loadLibrary",
        "let decoder",
        "tokenizer.",
    ):
        assert word not in text, word


def linked(out: Path, names: tuple[str, ...] = NAMES, *flags: str) -> Path:
    """A library for ARM64 that needs no other one, as the NDK's linker makes it."""
    code = "".join(f'extern "C" void {name}() {{}}\n' for name in names)
    search = os.pathsep.join([os.environ["PATH"], str(arm64.ARM64 / "tools" / "bin")])
    command = ["env", f"PATH={search}", "aarch64-linux-gnu-g++", "-shared", "-fPIC", "-nostdlib"]
    subprocess.run([*command, *flags, "-o", str(out), "-x", "c++", "-"], input=code, text=True, check=True)
    return out


def test_a_library_for_android(tiny: Path, tmp_path: Path) -> None:
    library = linked(tmp_path / "built.so", NAMES, "-Wl,-z,max-page-size=16384")
    result = package_model(PackageRequest(tiny, "android-arm64", tmp_path / "package", library=library))
    assert (tmp_path / "package" / "libdeltallm_ops.so").read_bytes() == library.read_bytes()
    assert not any(name.startswith("ops/") for name in files_of(tmp_path / "package"))
    assert "pages of up to 16 KiB" in str(result.library)
    assert "Build libdeltallm_ops.so" not in readme(tmp_path / "package")


def test_libraries_that_android_does_not_take(tmp_path: Path) -> None:
    android = TARGETS["android-arm64"]
    small = linked(tmp_path / "small.so", NAMES, "-Wl,-z,max-page-size=4096")
    with pytest.raises(
        DeltaLLMError, match="aligned for pages of 4096 bytes, and android-arm64 has systems with 16384"
    ):
        check_library(small, android)
    one = linked(tmp_path / "one.so", NAMES[:1])
    with pytest.raises(DeltaLLMError, match="exports no DeltaLLMRegisterCustomOps"):
        check_library(one, android)
    other = linked(tmp_path / "libonnxruntime.so", ("Ort",), "-Wl,-soname,libonnxruntime.so")
    needing = linked(tmp_path / "needing.so", NAMES, "-Wl,--no-as-needed", str(other))
    for target in (android, TARGETS["linux-arm64"]):
        with pytest.raises(DeltaLLMError, match=r"needs libonnxruntime\.so, which not every system"):
            check_library(needing, target)


def write_archive(path: Path, *objects: bytes) -> Path:
    path.write_bytes(archive({f"object-with-a-long-name-{i}.o": content for i, content in enumerate(objects)}))
    return path


def test_a_library_for_ios(tiny: Path, tmp_path: Path) -> None:
    ours = macho_object([NAMES[1]], undefined=["OrtGetApiBase"], local=[NAMES[0]])
    library = write_archive(tmp_path / "built.a", macho_object(["_ZN8deltallm4helpEv"]), ours)
    result = package_model(PackageRequest(tiny, "ios", tmp_path / "package", library=library))
    assert (tmp_path / "package" / "libdeltallm_ops.a").read_bytes() == library.read_bytes()
    assert str(result.library).startswith("arm64, ")
    assert "genai_config.json" not in files_of(tmp_path / "package")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (macho_object(NAMES[1:], platform=MACOS), "is built for macos, and not for iOS devices"),
        (macho_object(NAMES[1:], platform=SIMULATOR), "is built for ios simulator"),
        (macho_object(NAMES[1:], machine=X86_64), "is built for x86_64, and ios needs arm64"),
        (macho_object(NAMES[:1]), "defines no DeltaLLMRegisterCustomOps"),
        (macho_object(NAMES), "defines RegisterCustomOps too, which collides"),
        (macho_object([], undefined=NAMES[1:]), "defines no DeltaLLMRegisterCustomOps"),
        (b"\x7fELF" + b"\0" * 60, "is an ELF object"),
        (b"BC\xc0\xde" + b"\0" * 60, "is no 64-bit Mach-O object"),
    ],
)
def test_libraries_that_ios_does_not_take(tmp_path: Path, content: bytes, said: str) -> None:
    library = write_archive(tmp_path / "built.a", content)
    with pytest.raises(DeltaLLMError) as refusal:
        check_library(library, TARGETS["ios"])
    assert said in str(refusal.value)
    assert str(library) in str(refusal.value)
