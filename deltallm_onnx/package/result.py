"""What a package came to be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from deltallm_onnx.byte_text import byte_text


@dataclasses.dataclass(frozen=True)
class PackagedFile:
    """A file of a package.

    Attributes:
        name: path relative to the folder, with "/".
        size: in bytes.
        sha256: digest in hex.
    """

    name: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class PackageResult:
    """What `package_model` wrote.

    Attributes:
        folder: the package.
        target: name of the target.
        files: everything in it but SHA256SUMS, by name.
        library: what the operator library says of itself; None where the package has none.
        library_source: the file it was copied from; None likewise.
        memory: what a context takes, in one sentence.
        notes: what the user should know, one sentence each.
    """

    folder: Path
    target: str
    files: tuple[PackagedFile, ...]
    library: str | None
    library_source: Path | None
    memory: str
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        data = dataclasses.asdict(self)
        data["folder"] = str(self.folder)
        data["library_source"] = None if self.library_source is None else str(self.library_source)
        return {**data, "size": self.size}

    def __str__(self) -> str:
        """For people: the folder, its larger files, what to know of them."""
        lines = [f"{self.folder}: {byte_text(self.size)} for {self.target}, {len(self.files)} files and SHA256SUMS"]
        width = max(len(file.name) for file in self._shown)
        lines += [f"  {file.name:{width}} {byte_text(file.size):>9}" for file in self._shown]
        rest = len(self.files) - len(self._shown)
        if rest:
            lines.append(f"  and {rest} of sources and licences")
        if self.library is not None:
            lines.append(f"operator library: {self.library}; copied from {self.library_source}")
        lines.append(f"memory: {self.memory}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    @property
    def _shown(self) -> list[PackagedFile]:
        return [file for file in self.files if "/" not in file.name]
