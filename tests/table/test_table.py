"""The table of architectures reads back as it was written, and refuses what it does not say."""

from __future__ import annotations

import pytest
from support import architecture_table
from support.architecture_table import Cell, read, round_up, write


@pytest.mark.parametrize(
    ("difference", "text"),
    [(0.0, "0"), (3.2e-6, "4e-6"), (4e-6, "4e-6"), (9.3e-7, "1e-6"), (1e-4, "1e-4"), (0.0123, "2e-2")],
)
def test_rounds_up_to_one_digit(difference: float, text: str) -> None:
    assert round_up(difference) == text
    assert float(text) >= difference * (1 - 1e-9)


def test_reads_back_what_was_written() -> None:
    cells = {
        ("Qwen3", "genai"): Cell(4e-6),
        ("Llama", "SDPA"): Cell(None, "is refused: a reason"),
        ("Llama", "genai"): Cell(2e-5, "another: 1. reason"),
        ("GPT-2", "optimum"): Cell(None, "is refused: a reason"),
    }
    text = write(cells)
    assert read(text) == cells
    assert write(read(text)) == text
    assert text.count("is refused: a reason") == 1


def test_check_refuses_what_the_table_does_not_say(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "README.md"  # type: ignore[operator]  # pytest's tmp_path
    monkeypatch.setattr(architecture_table, "PATH", path)
    path.write_text(write({("Llama", "genai"): Cell(4e-6), ("OPT", "SDPA"): Cell(None, "why")}), encoding="utf-8")
    architecture_table.check("Llama", "genai", Cell(3e-5))
    architecture_table.check("OPT", "SDPA", Cell(None, "why"))
    wrong = {
        ("Llama", "genai"): [Cell(5e-5), Cell(4e-6, "why"), Cell(None, "why")],
        ("OPT", "SDPA"): [Cell(1e-6), Cell(None, "another")],
        ("OPT", "genai"): [Cell(1e-6)],
    }
    for (architecture, source), cells in wrong.items():
        for cell in cells:
            with pytest.raises(AssertionError, match="update-table"):
                architecture_table.check(architecture, source, cell)
    architecture_table.update("OPT", "genai", Cell(1e-6))
    architecture_table.check("OPT", "genai", Cell(1e-6))
    architecture_table.check("OPT", "SDPA", Cell(None, "why"))


def test_every_committed_cell_says_something() -> None:
    cells = read(architecture_table.PATH.read_text(encoding="utf-8"))
    architectures = {architecture for architecture, _ in cells}
    empty = [(a, s) for a in sorted(architectures) for s in architecture_table.SOURCES if (a, s) not in cells]
    assert not empty, "each empty cell needs its reason"
