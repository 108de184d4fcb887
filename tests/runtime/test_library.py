from __future__ import annotations

import platform
from pathlib import Path

import onnxruntime as ort
import pytest

import deltallm_onnx
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import library, ops_library_path, register


def test_the_library_is_found_and_loads() -> None:
    assert ops_library_path().is_absolute()
    register(ort.SessionOptions())


def test_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tmp_path / "any name"
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(chosen))
    with pytest.raises(DeltaLLMError, match=r"DELTALLM_OPS_LIBRARY names .*any name, which is not a file"):
        ops_library_path()
    chosen.write_bytes(b"")
    assert ops_library_path() == chosen


def test_every_folder_of_the_package_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation keeps the sources in one folder and the library in another."""
    sources, built = tmp_path / "sources", tmp_path / "built"
    sources.mkdir()
    built.mkdir()
    (built / library.LIBRARY_NAMES[0]).write_bytes(b"")
    monkeypatch.delenv("DELTALLM_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(deltallm_onnx, "__path__", [str(sources), str(built)])
    assert ops_library_path() == built / library.LIBRARY_NAMES[0]


def test_a_missing_library_says_how_to_build_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DELTALLM_OPS_LIBRARY", raising=False)
    monkeypatch.setattr(deltallm_onnx, "__path__", [str(tmp_path)])
    monkeypatch.setattr(library, "_SOURCE_BUILD", tmp_path / "build" / "ops")
    with pytest.raises(DeltaLLMError, match=f"not in {tmp_path}, .*make setup") as caught:
        ops_library_path()
    assert "\n" not in str(caught.value)


def test_registering_twice_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    options = ort.SessionOptions()
    register(options)
    with pytest.raises(DeltaLLMError, match="already registered with these session options"):
        register(options)
    register(ort.SessionOptions())
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "libfake.so"
    fake.write_bytes(b"not a library")
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(fake))
    options = ort.SessionOptions()
    with pytest.raises(DeltaLLMError, match=r"cannot load .*libfake\.so") as caught:
        register(options)
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("DELTALLM_OPS_LIBRARY")
    register(options)  # a failed registration does not count


def test_a_library_for_another_processor_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's loader says that such a file does not exist."""
    content = bytearray(ops_library_path().read_bytes())
    content[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    other = tmp_path / "libdeltallm_ops.so"
    other.write_bytes(content)
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(other))
    with pytest.raises(DeltaLLMError, match=f"is built for riscv64, and this machine is {platform.machine()}: "):
        register(ort.SessionOptions())


@pytest.mark.parametrize("version", ["1.16.3", "1.9.0", "0.5"])
def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    with pytest.raises(DeltaLLMError, match=f"onnxruntime {version} is too old .*1.17 or newer"):
        register(ort.SessionOptions())


@pytest.mark.parametrize("version", ["1.17.0", "1.32.0", "2.0.0", "1.33.0.dev20260101", "main"])
def test_newer_and_unknown_versions_are_tried(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(ort, "__version__", version)
    register(ort.SessionOptions())
