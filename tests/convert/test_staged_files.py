"""Files grow beside their target: what killed processes leave goes with the next run, what living ones use stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export.output import staged, write_json

PROGRAM = """
import sys, time
from pathlib import Path
from deltallm_onnx.export.output import staged
with staged(Path(sys.argv[1])) as folder:
    (folder / "m.onnx.data").write_bytes(bytes(1000))
    print(folder.parent, flush=True)
    time.sleep(120)
"""


@contextmanager
def writing(target: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process in the middle of writing, and its folder."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def write(target: Path) -> None:
    with staged(target) as folder:
        (folder / target.name).write_text("whole")


@pytest.mark.parametrize("name", ["m.onnx", "m[1].onnx"], ids=["plain", "a pattern"])
def test_what_a_killed_process_left_is_gone_after_the_next_run(tmp_path: Path, name: str) -> None:
    with writing(tmp_path / name) as (process, left):
        write(tmp_path / name)
        assert (left / "files" / "m.onnx.data").stat().st_size == 1000, "its owner lives"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert left.is_dir()
    write(tmp_path / "other.onnx")
    assert left.is_dir(), "of another target"
    write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "other.onnx"])


def test_nothing_but_the_files_is_moved(tmp_path: Path) -> None:
    with staged(tmp_path / "m.onnx") as folder:
        assert list(folder.iterdir()) == [], "the lock lies elsewhere"
        (folder / "m.onnx").write_text("graph")
        (folder / "m.onnx.data").write_text("weights")
        (folder / "inner").mkdir()
        (folder / "inner" / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "m.onnx", "m.onnx.data"]


def test_staging_within_staging(tmp_path: Path) -> None:
    """As an export does within a conversion, under the same name."""
    with staged(tmp_path / "m.onnx") as folder:
        write(folder / "m.onnx")
        assert [path.name for path in folder.iterdir()] == ["m.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("deltallm_onnx.scratch_folder.fcntl.flock", refuse)
    write(tmp_path / "m.onnx")
    write(tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_json_is_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "data.json", {"θ": 0.1})
    assert (tmp_path / "data.json").read_text(encoding="utf-8") == '{\n "θ": 0.1\n}\n'
    (tmp_path / "taken").mkdir()
    with pytest.raises(DeltaLLMError, match="taken is a directory where a file must be written"):
        write_json(tmp_path / "taken", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "taken"]
