"""models/README.md: architecture × source × verified parity, written by the tests that prove it.

Each parity test hands in its cell through the fixture `architecture_cell`, which compares it with the committed table,
or writes it there with `--update-table`. A difference is written rounded up to one digit; since machines add numbers
up in different orders, a test fails only where it finds more than ten times what the table says.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import re
from pathlib import Path

PATH = Path(__file__).parents[2] / "models" / "README.md"
SOURCES = ("transformers", "genai", "optimum", "SDPA")
#: A test may find so many times the committed difference.
SLACK = 10.0

_INTRODUCTION = """\
# Models that are known to convert

Each number is measured by a test in every run of `make test`: the largest absolute difference of any logit (standard
deviation about 1) between a tiny random model in the source's own runtime and the same model rewritten with θ = 0 and a
float32 cache.

| source | what is rewritten | what it is compared with |
|---|---|---|
| transformers | `deltallm-onnx convert` of the Hugging Face model | transformers' eager attention |
| genai | the folder of onnxruntime-genai's own model builder, float32 for CPU | that folder in onnxruntime-genai |
| optimum | the export of optimum-onnx (`optimum-cli export onnx`) | that export in `ORTModelForCausalLM` |
| SDPA | `torch.onnx.export` of the model with `attn_implementation="sdpa"` | transformers' eager attention |

`pytest tests --update-table` writes this file; a number in brackets refers to the reason below the table.

"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is known of one architecture from one source.

    Attributes:
        difference: the largest difference of a logit; None where there is nothing to compare.
        reason: why there is no number, or what goes with it.
    """

    difference: float | None = None
    reason: str | None = None


Cells = dict[tuple[str, str], Cell]


def round_up(difference: float) -> str:
    """One digit, at least: 3.2e-06 is 4e-6."""
    if difference == 0:
        return "0"
    exponent = math.floor(math.log10(difference))
    digit = math.ceil(difference / 10**exponent - 1e-9)
    return f"{digit}e{exponent}" if digit < 10 else f"1e{exponent + 1}"


def read(text: str) -> Cells:
    """The cells of the table in a text."""
    reasons = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    cells: Cells = {}
    for line in re.findall(r"^\|(.+)\|$", text.partition("| architecture |")[2], re.MULTILINE)[1:]:
        architecture, *entries = (entry.strip() for entry in line.split("|"))
        for source, entry in zip(SOURCES, entries, strict=True):
            match = re.fullmatch(r"([\d.e-]+)? ?(?:\[(\d+)\])?", entry)
            if match is None:
                raise ValueError(f"the cell {architecture} × {source} reads {entry!r}")
            number, note = match.groups()
            if number or note:
                cells[architecture, source] = Cell(float(number) if number else None, reasons[note] if note else None)
    return cells


def write(cells: Cells) -> str:
    """The whole file."""
    reasons: list[str] = []
    rows = []
    for architecture in sorted({architecture for architecture, _ in cells}, key=str.lower):
        entries = []
        for source in SOURCES:
            cell = cells.get((architecture, source), Cell())
            if cell.reason is not None and cell.reason not in reasons:
                reasons.append(cell.reason)
            parts = [round_up(cell.difference)] if cell.difference is not None else []
            parts += [f"[{reasons.index(cell.reason) + 1}]"] if cell.reason is not None else []
            entries.append(" ".join(parts))
        rows.append("| " + " | ".join([architecture, *entries]) + " |")
    head = ["| architecture | " + " | ".join(SOURCES) + " |", "|---" * (1 + len(SOURCES)) + "|"]
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    return _INTRODUCTION + "\n".join([*head, *rows, "", *notes]) + "\n"


def update(architecture: str, source: str, cell: Cell) -> None:
    """Put one cell into the committed file; several processes may do so at once."""
    with PATH.open("a+", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cells = read(PATH.read_text(encoding="utf-8"))
        cells[architecture, source] = cell
        lock.seek(0)
        lock.truncate()
        lock.write(write(cells))
        lock.flush()
        os.fsync(lock.fileno())


def check(architecture: str, source: str, cell: Cell) -> None:
    """Compare what a test found with the committed file."""
    committed = read(PATH.read_text(encoding="utf-8")).get((architecture, source))
    hint = "run this test with --update-table and read the difference before committing it"
    assert committed is not None, f"{PATH.name} says nothing of {architecture} from {source}: {hint}"
    assert committed.reason == cell.reason, f"{architecture} from {source}: {hint}"
    assert (committed.difference is None) == (cell.difference is None), f"{architecture} from {source}: {hint}"
    if committed.difference is not None and cell.difference is not None:
        bound = SLACK * max(committed.difference, 1e-6)
        assert cell.difference <= bound, f"{architecture} from {source} differs by {cell.difference:.1e}: {hint}"
