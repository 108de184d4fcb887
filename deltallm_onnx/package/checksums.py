"""SHA256SUMS, as `sha256sum -c` reads it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deltallm_onnx.dense_model import file_sha256
from deltallm_onnx.errors import DeltaLLMError

#: The file's usual name.
SHA256SUMS = "SHA256SUMS"


def write_checksums(folder: Path) -> dict[str, str]:
    """Write the digests of all files below a folder into it.

    Args:
        folder: without a SHA256SUMS.

    Returns:
        Digest in hex by path relative to the folder, in order.

    Raises:
        DeltaLLMError: for a file name that takes more than one line.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = {name: file_sha256(folder / name) for name in names}
    # newline="": sha256sum takes a carriage return for a part of the name.
    with (folder / SHA256SUMS).open("w", encoding="utf-8", newline="") as file:
        file.writelines(_lines(digests.items()))
    return digests


def _lines(digests: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, digest in digests:
        if "\\" in name or any(ord(character) < ord(" ") for character in name):
            raise DeltaLLMError(f"The file name {name!r} cannot stand in {SHA256SUMS}: rename the file.")
        yield f"{digest}  {name}\n"
