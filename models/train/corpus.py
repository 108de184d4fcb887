"""The corpus: whole public-domain books, each belonging to exactly one split.

`MANIFEST.tsv` beside this file names every book (title, author, year, source, bytes) and its split: `train`,
`validation` or `calibration`. The books themselves are not committed; a folder holding one `.txt` file per manifest
row is given on the command line.
"""

from __future__ import annotations

import bisect
import csv
import itertools
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

SPLITS = ("train", "validation", "calibration")
MANIFEST = Path(__file__).with_name("MANIFEST.tsv")
EXCERPT_SEPARATOR = "\n\n\n"  # no book holds three line breaks in a row


@dataclass(frozen=True)
class Book:
    """One row of the manifest."""

    file: str
    title: str
    author: str
    year: str
    split: str


def read_manifest(path: Path = MANIFEST) -> list[Book]:
    """Every book of the manifest, in its order; a missing column or an unknown split is refused."""
    if not path.is_file():
        raise UserError(f"no manifest at {path}; it lists one book per line with the columns file … split")
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    books = []
    for number, row in enumerate(rows, start=2):
        missing = [name for name in ("file", "title", "author", "year", "split") if not row.get(name)]
        if missing:
            raise UserError(f"{path} line {number} lacks {', '.join(missing)}; fill every column")
        if row["split"] not in SPLITS:
            raise UserError(f"{path} line {number} has split {row['split']!r}; use one of {', '.join(SPLITS)}")
        books.append(Book(row["file"], row["title"], row["author"], row["year"], row["split"]))
    return books


def books_of(split: str, manifest: Path = MANIFEST) -> list[Book]:
    """The books of one split, in manifest order; an empty split is refused."""
    books = [book for book in read_manifest(manifest) if book.split == split]
    if not books:
        raise UserError(f"{manifest} has no book in the split {split!r}; mark at least one")
    return books


def read_book(folder: Path, book: Book) -> str:
    """The text of one book, with surrounding blank lines removed."""
    path = folder / book.file
    if not path.is_file():
        raise UserError(f"{path} is missing; put every book of the manifest into {folder}")
    return path.read_text(encoding="utf-8").strip()


def excerpt(text: str, size: int) -> str:
    """The first paragraphs of `text` that fit in about `size` bytes (UTF-8), ending with a whole paragraph."""
    kept: list[str] = []
    used = 0
    for paragraph in text.split("\n\n"):
        used += len(paragraph.encode("utf-8")) + 2
        if kept and used > size:
            break
        kept.append(paragraph)
    return "\n\n".join(kept)


def spread_excerpts(text: str, size: int, count: int) -> list[str]:
    """Excerpts of whole paragraphs, about `size` bytes in all: at the beginning, 1 / `count` of it further, …."""
    paragraphs = text.split("\n\n")
    ends = list(itertools.accumulate(len(paragraph.encode("utf-8")) + 2 for paragraph in paragraphs))
    starts = [bisect.bisect_left(ends, ends[-1] * number / count) for number in range(count)]
    return [excerpt("\n\n".join(paragraphs[start:]), size // count) for start in starts]
