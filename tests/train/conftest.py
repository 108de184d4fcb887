from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The training scripts import each other by name, as does `python models/train/train.py`.
sys.path[:0] = [str(HERE.parents[1] / "models" / "train"), str(HERE)]

from train_support import invented_book, run_script  # noqa: E402


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four invented books and their manifest."""
    folder = tmp_path_factory.mktemp("books")
    lines = ["file\ttitle\tauthor\tyear\tsplit"]
    for number, split in enumerate(("train", "train", "validation", "calibration")):
        (folder / f"book{number}.txt").write_text(invented_book(number, 1200))
        lines.append(f"book{number}.txt\tBook {number}\tNobody\t190{number}\t{split}")
    (folder / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def fresh_run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function giving new run folders with the tokenizer and the token arrays of the invented books."""
    source = tmp_path_factory.mktemp("tokens")
    done = run_script(
        "tokenizer.py", "--books", library, "--manifest", library / "MANIFEST.tsv", "--out", source, "--vocab-size", 320
    )
    assert done.returncode == 0, done.stderr

    def make() -> Path:
        run = tmp_path_factory.mktemp("run")
        for path in source.iterdir():
            (run / path.name).write_bytes(path.read_bytes())
        return run

    return make
