"""The reader of static archives: another writer's archives, and damaged ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.macho import IOS, SIMULATOR, X86_64, archive, macho_object

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.package.archive_file import read_archive_file


def test_gnu_archive(tmp_path: Path) -> None:
    """binutils' ar writes long names into a member of their own, and fills odd members up."""
    objects = {
        "a.o": macho_object(["first"], undefined=["second"]) + b"\0",
        "a-name-that-is-longer-than-sixteen-characters.o": macho_object(["second"], platform=None),
        "other.o": macho_object(["third", "Fourth"], local=["hidden"], machine=X86_64, platform=SIMULATOR),
    }
    for name, content in objects.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "lib.a"
    subprocess.run(["/usr/bin/env", "ar", "rc", "lib.a", *objects], cwd=tmp_path, check=True)
    found = read_archive_file(path)
    assert found.machines == {"aarch64", "x86_64"}
    assert found.platforms == {"ios", "ios simulator"}
    assert found.functions == {"first", "second", "third", "Fourth"}
    assert found.size == path.stat().st_size


def test_universal_and_empty_archives(tmp_path: Path) -> None:
    path = tmp_path / "lib.a"
    for content, said in (
        (b"\xca\xfe\xba\xbe" + b"\0" * 40, "lipo -thin"),
        (b"!<arch>\n", "it holds no object"),
        (archive({}), "it holds no object"),
        (b"!<thin>\n", "it does not begin as one"),
        (b"", "it does not begin as one"),
        (archive({"a.o": macho_object(["one"])})[:-7], "it is cut short"),
    ):
        path.write_bytes(content)
        with pytest.raises(DeltaLLMError, match=said):
            read_archive_file(path)
    with pytest.raises(DeltaLLMError, match="cannot be read"):
        read_archive_file(tmp_path / "none.a")


def test_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    """Every count and offset may be wrong; none leads to anything but a sentence."""
    objects = {f"{name}.o": macho_object([name, f"{name}2"], undefined=["u"], platform=IOS) for name in ("one", "two")}
    sound = np.frombuffer(archive(objects), np.uint8)
    rng, path, refused = np.random.default_rng(7), tmp_path / "lib.a", 0
    for _ in range(300):
        broken = sound.copy()
        places = rng.integers(8, len(sound), rng.integers(1, 12))
        broken[places] = rng.choice([0, 1, 0x30, 0x39, 0x7F, 0xFF, rng.integers(256)], len(places))
        path.write_bytes(broken.tobytes())
        try:
            read_archive_file(path)
        except DeltaLLMError:
            refused += 1
    assert 30 < refused < 270, "one-sided test"
