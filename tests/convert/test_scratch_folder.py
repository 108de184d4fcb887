"""What killed processes leave is removed by the next one, and what living ones use is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deltallm_onnx.scratch_folder import scratch_folder

PROGRAM = """
import sys, time
from pathlib import Path
from deltallm_onnx.scratch_folder import scratch_folder
with scratch_folder(Path(sys.argv[1]), "calibrate") as folder:
    (folder / "large").write_bytes(bytes(1000))
    print(folder, flush=True)
    time.sleep(120)
"""


def left_by_a_process(parent: Path, number: signal.Signals) -> Path:
    """The folder of a process that got the signal in the middle of its work."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    assert (folder / "large").is_file()
    with scratch_folder(parent, "calibrate"):
        assert (folder / "large").is_file(), "its owner lives"
    os.kill(process.pid, number)
    process.wait()
    process.stdout.close()
    return folder


def test_a_killed_process_leaves_nothing_for_long(tmp_path: Path) -> None:
    folder = left_by_a_process(tmp_path, signal.SIGKILL)
    assert (folder / "large").is_file()
    with scratch_folder(tmp_path, "sweep"):
        assert folder.is_dir(), "of another kind"
    with scratch_folder(tmp_path, "calibrate") as new:
        assert list(tmp_path.iterdir()) == [new]
    assert list(tmp_path.iterdir()) == []


def test_folders_of_the_same_process_do_not_meet(tmp_path: Path) -> None:
    with scratch_folder(tmp_path, "calibrate") as one, scratch_folder(tmp_path, "calibrate") as two:
        assert one.is_dir()
        assert two.is_dir()
        assert one != two
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "inner").mkdir()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"), scratch_folder(tmp_path, "calibrate") as folder:
        fail(folder)
    assert list(tmp_path.iterdir()) == []


def test_folders_of_others_stay(tmp_path: Path) -> None:
    """Without a lock of ours, behind a link, and where the lock is no file."""
    kept = [tmp_path / f".calibrate.{name}.partial" for name in ("plain", "link", "odd")]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "in-use").touch()
    kept[0].mkdir()
    kept[1].symlink_to(tmp_path / "elsewhere")
    (kept[2] / "in-use").mkdir(parents=True)
    with scratch_folder(tmp_path, "calibrate"):
        pass
    assert all(path.exists() for path in (*kept, tmp_path / "elsewhere" / "in-use"))
