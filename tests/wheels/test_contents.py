"""What lies in the wheels: everything of the package and nothing else, for the platforms that their names promise."""

from __future__ import annotations

import base64
import csv
import email
import hashlib
import io
import re
import stat
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from deltallm_onnx.library_file import read_library_file

ROOT = Path(__file__).parents[2]
LIBRARY = "deltallm_onnx/libdeltallm_ops.so"
#: What the names of the wheels promise: that this glibc, or a newer one, is enough.
GLIBC = (2, 27)
#: Symbolic links in the source, which must have become what they name.
LINKS = {"deltallm_onnx/calibration/books.txt": "models/demo/calibration.txt"}


@pytest.fixture(params=["x86_64", "aarch64"])
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def files(wheels: dict[str, Path], machine: str) -> dict[str, bytes]:
    """Path → content."""
    with zipfile.ZipFile(wheels[machine]) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


def source_files() -> dict[str, Path]:
    """What the package consists of, by the name it has when it is installed."""
    found = {}
    for folder, name in ((ROOT / "deltallm_onnx", "deltallm_onnx"), (ROOT / "passes", "deltallm_onnx/passes")):
        for path in folder.rglob("*"):  # does not follow deltallm_onnx/passes, which is a link
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = path
    return found


def test_package_files(files: dict[str, bytes]) -> None:
    expected = source_files()
    assert {"deltallm_onnx/passes/__init__.py", *LINKS} < set(expected)
    packaged = {name for name in files if ".dist-info/" not in name}
    assert packaged == {*expected, LIBRARY}, "run 'make wheels'"
    for name, path in expected.items():
        assert files[name] == path.read_bytes(), f"{name}: run 'make wheels'"


def test_links_became_files(wheels: dict[str, Path], machine: str) -> None:
    with zipfile.ZipFile(wheels[machine]) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
        assert [name for name, mode in modes.items() if stat.S_ISLNK(mode)] == []
        for name, target in LINKS.items():
            assert (ROOT / name).is_symlink()
            assert archive.read(name) == (ROOT / target).read_bytes()


def test_names_and_tags(wheels: dict[str, Path], files: dict[str, bytes], machine: str) -> None:
    major, minor = GLIBC
    assert wheels[machine].name == f"deltallm_onnx-0.1.0-py3-none-manylinux_{major}_{minor}_{machine}.whl"
    (content,) = (content for name, content in files.items() if name.endswith(".dist-info/WHEEL"))
    told = email.message_from_bytes(content)
    assert told.get_all("Tag") == [f"py3-none-manylinux_{major}_{minor}_{machine}"]
    assert told["Root-Is-Purelib"] == "false"


def test_library(files: dict[str, bytes], machine: str, tmp_path: Path) -> None:
    path = tmp_path / "libdeltallm_ops.so"
    path.write_bytes(files[LIBRARY])
    library = read_library_file(path)
    assert library.machine == machine
    assert library.glibc is not None
    assert library.glibc <= GLIBC
    assert library.exports == ("DeltaLLMRegisterCustomOps", "RegisterCustomOps")
    # ONNX Runtime itself needs all of them.
    assert {name.split(".so.")[0] for name in library.needed} <= {"libm", "libc", "libgcc_s", "ld-linux-x86-64"}
    assert library.size <= 1_000_000


def test_record(files: dict[str, bytes]) -> None:
    """Every file with its digest, so that an installer can see what was changed."""
    ((record, content),) = ((name, c) for name, c in files.items() if name.endswith(".dist-info/RECORD"))
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(content.decode()))}
    assert set(rows) == set(files)
    for name, digest in rows.items():
        if name != record:
            found = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=")
            assert digest == f"sha256={found.decode()}", name


def test_no_file_knows_this_machine(files: dict[str, bytes]) -> None:
    # pip and scikit-build-core build in folders with such names.
    places = [str(ROOT), sys.prefix, *(str(Path(tempfile.gettempdir(), name)) for name in ("tmp", "pip-"))]
    at_home = re.compile(rb"(?<![\w.])/(root|home)/\w[^\s\0]*")
    for name, content in files.items():
        assert [place for place in places if place.encode() in content] == [], name
        assert at_home.findall(content) == [], name
