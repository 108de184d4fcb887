"""The reader of compiled libraries, against binutils and against broken files; and what our own library must be."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import arm64

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.library_file import LibraryFile, read_library_file
from deltallm_onnx.runtime import ops_library_path

LIBRARIES = {"x86_64": ops_library_path(), "aarch64": arm64.LIBRARY}
EXPORTS = ("DeltaLLMRegisterCustomOps", "RegisterCustomOps")
#: What every Linux with ONNX Runtime has.
SYSTEM = re.compile(r"lib(m|c|gcc_s)\.so\.\d+|ld-linux-[a-z0-9-]+\.so\.\d+")
MOST_BYTES = 1_000_000


def output_of(*command: object) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", params=LIBRARIES)
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def library(machine: str) -> LibraryFile:
    assert LIBRARIES[machine].is_file(), "run 'make arm64'"
    return read_library_file(LIBRARIES[machine])


def test_reads_what_binutils_reads(library: LibraryFile) -> None:
    dynamic = output_of("readelf", "-dW", library.path)
    assert list(library.needed) == re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    symbols = output_of("nm", "-D", "--defined-only", library.path)
    assert library.exports == tuple(sorted(line.split()[-1].split("@")[0] for line in symbols.splitlines()))
    segments = output_of("readelf", "-lW", library.path)
    alignments = [int(line.split()[-1], 16) for line in segments.splitlines() if line.split()[:1] == ["LOAD"]]
    assert library.page_size == min(alignments)
    versions = re.findall(r"Name: GLIBC_(\d+)\.(\d+)", output_of("readelf", "-VW", library.path))
    assert library.glibc == max((int(major), int(minor)) for major, minor in versions)
    assert library.size == library.path.stat().st_size


def test_reads_a_library_with_many_symbols() -> None:
    """ONNX Runtime's own, with versioned exports and more libraries needed."""
    (path,) = (arm64.ARM64 / "site" / "onnxruntime" / "capi").glob("libonnxruntime.so.1.*")
    found = read_library_file(path)
    assert (found.machine, found.exports.count("OrtGetApiBase")) == ("aarch64", 1)
    assert {"libstdc++.so.6", "libc.so.6"} < set(found.needed)


def test_what_our_library_must_be(library: LibraryFile, machine: str, tmp_path: Path) -> None:
    assert library.machine == machine
    assert library.exports == EXPORTS
    assert all(SYSTEM.fullmatch(name) for name in library.needed), library.needed
    assert library.page_size % 16384 == 0
    assert "soname: [libdeltallm_ops.so]" in output_of("readelf", "-dW", library.path)
    assert library.glibc is not None
    assert library.glibc <= (2, 27), "newer than what the wheels promise"
    stripped = tmp_path / "stripped.so"
    strip = "strip" if machine == "x86_64" else shutil.which("aarch64-linux-gnu-strip")
    output_of(strip or arm64.ARM64 / "tools" / "bin" / "aarch64-linux-gnu-strip", "-o", stripped, library.path)
    small = read_library_file(stripped)
    assert small.size <= MOST_BYTES
    assert (small.exports, small.needed) == (library.exports, library.needed)


def test_no_instruction_set_of_its_own_is_needed(library: LibraryFile) -> None:
    """The kernels are chosen as it runs: nothing marks the file as one for newer processors alone."""
    assert "x86-64-v" not in output_of("readelf", "-nW", library.path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"\x7fELF\x02\x01", "it has 6 bytes"),
        (b"MZ" + bytes(200), "it does not begin as one"),
        (b"\x7fELF\x01\x01" + bytes(200), "it does not begin as one"),  # 32 bits
        (b"\x7fELF\x02\x02" + bytes(200), "it does not begin as one"),  # big endian
        (b"\x7fELF\x02\x01" + bytes(200), "it is not linked as one"),
    ],
)
def test_other_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "lib.so"
    path.write_bytes(content)
    with pytest.raises(DeltaLLMError, match=reason) as refusal:
        read_library_file(path)
    assert str(path) in str(refusal.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match="cannot be read"):
        read_library_file(tmp_path / "lib.so")
    with pytest.raises(DeltaLLMError, match="cannot be read"):
        read_library_file(tmp_path)


def test_truncated_files(machine: str, tmp_path: Path) -> None:
    """The section table lies at the end, so whatever is cut off is missed."""
    content, path = LIBRARIES[machine].read_bytes(), tmp_path / "lib.so"
    for share in (0.01, 0.3, 0.9, 0.999):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DeltaLLMError, match="lies outside the file"):
            read_library_file(path)


def test_corrupt_files_are_read_or_refused(machine: str, tmp_path: Path) -> None:
    """Any header may say anything: no other exception, no endless loop."""
    rng, path = np.random.default_rng(7), tmp_path / "lib.so"
    sound = np.frombuffer(LIBRARIES[machine].read_bytes(), np.uint8)
    tables = int.from_bytes(sound[40:48].tobytes(), "little")
    # The file header, the segment table behind it, and the section table are what is believed.
    headers = np.concatenate([np.arange(64), np.arange(64, 700), np.arange(tables, len(sound))])
    refused = 0
    for _ in range(400):
        broken = sound.copy()
        places = rng.choice(headers, rng.integers(1, 60))
        broken[places] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)], len(places))
        path.write_bytes(broken.tobytes())
        try:
            read_library_file(path)
        except DeltaLLMError:
            refused += 1
    assert 40 < refused < 360, "one-sided test"
