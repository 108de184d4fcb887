from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.measurements import measurement

from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.errors import DeltaLLMError


def filled(path: Path) -> Path:
    journal = Journal(path)
    for name in ("one", "two", "three"):
        journal.add(name, measurement(kl=(len(name), 0.5)))
    return path


def test_what_was_added_is_found_again(tmp_path: Path) -> None:
    journal = Journal(filled(tmp_path / "j"))
    assert len(journal) == 3
    found = journal.find("three")
    assert found is not None
    assert np.array_equal(found.divergence, [5, 0.5])
    assert journal.find("four") is None


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_line_cut_short_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path / "j")
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    journal = Journal(path)
    assert len(journal) == 2
    journal.add("three", measurement(kl=(5, 0.5)))
    assert path.read_bytes() == whole


def test_half_a_long_line_leaves_nothing_behind_a_short_one(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    whole = path.read_bytes()
    Journal(path).add("long", measurement(kl=(0.1,) * 99, loss=(1.0,) * 99))
    path.write_bytes(path.read_bytes()[:-5])
    Journal(path).add("short", measurement())
    assert path.read_bytes().startswith(whole)
    assert len(Journal(path)) == 4


def test_a_header_cut_short_is_an_empty_journal(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    path.write_bytes(path.read_bytes()[:20])
    journal = Journal(path)
    assert len(journal) == 0
    journal.add("one", measurement())
    assert len(Journal(path)) == 1


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, '{"format": "something else"}'),
        (2, "no JSON"),
        (3, '{"key": "one"}'),
        (3, '{"key": 5, "measured": {}}'),
        (4, "[]"),
    ],
)
def test_any_other_fault_is_refused_with_its_line(tmp_path: Path, number: int, line: str) -> None:
    path = filled(tmp_path / "j")
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("".join(f"{each}\n" for each in lines))
    with pytest.raises(DeltaLLMError, match=f"^Line {number} of "):
        Journal(path)
    assert len(Journal(path, resume=False)) == 0


def test_without_resume_the_first_measurement_begins_a_new_file(tmp_path: Path) -> None:
    path = filled(tmp_path / "j")
    journal = Journal(path, resume=False)
    journal.add("new", measurement())
    assert Journal(path).find("one") is None
    assert len(Journal(path)) == 1


def test_nothing_is_written_without_a_path_and_nothing_left_when_removed(tmp_path: Path) -> None:
    memory = Journal(None)
    memory.add("one", measurement())
    assert memory.find("one") is not None
    journal = Journal(filled(tmp_path / "j"))
    journal.remove()
    journal.remove()
    assert list(tmp_path.iterdir()) == []
