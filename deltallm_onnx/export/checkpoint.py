"""Weights that stay on disk until transformers asks for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors


class StoredTensor:
    """One tensor of a safetensors file; indexing reads it.

    Every read opens the file anew: pages of a file that stays mapped count as memory of the process, so that a half
    precision checkpoint read by transformers' own loader takes half again the memory of the float32 model.
    """

    def __init__(self, file: Path, key: str) -> None:
        self._file, self._key = file, key

    def __getitem__(self, index: Any) -> Any:
        with safetensors.safe_open(self._file, framework="pt") as opened:
            return opened.get_tensor(self._key)[index]

    @property
    def shape(self) -> tuple[int, ...]:
        """Read from the header."""
        with safetensors.safe_open(self._file, framework="np") as opened:
            return tuple(opened.get_slice(self._key).get_shape())


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by name; a name in two files is the later one's."""
    tensors = {}
    for file in files:
        with safetensors.safe_open(file, framework="np") as opened:
            tensors.update({key: StoredTensor(file, key) for key in opened.keys()})  # noqa: SIM118 - no mapping
    return tensors
