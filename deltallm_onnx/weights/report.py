"""What storing the weights did to them: sizes and errors, matrix by matrix and in total."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.weights.block_quantise import StorageError
from deltallm_onnx.weights.formats import WeightFormat

#: How many of the worst matrices, and of the kept weights, are named in the text.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class StoredMatrix:
    """One weight in its new form.

    Attributes:
        name: of the weight.
        parameters: how many weights.
        stored_bytes: what they take now.
        error: how far they are from what they were.
    """

    name: str
    parameters: int
    stored_bytes: int
    error: StorageError


@dataclasses.dataclass(frozen=True)
class LeftWeight:
    """A weight that stays as it was.

    Attributes:
        name: of the weight.
        parameters: how many weights.
        reason: half a sentence.
    """

    name: str
    parameters: int
    reason: str


@dataclasses.dataclass(frozen=True)
class WeightsReport:
    """What became of the weights.

    Attributes:
        weight_format: what was asked for.
        stored: the weights in their new form, in the order of the file.
        left: weights with two or more dimensions that stay as they were.
    """

    weight_format: WeightFormat
    stored: tuple[StoredMatrix, ...]
    left: tuple[LeftWeight, ...]

    @property
    def relative_rms(self) -> float:
        """√(Σ(Ŵ−W)²/ΣW²) over all stored weights."""
        squares = math.fsum(matrix.error.squares for matrix in self.stored)
        return StorageError(squares, math.fsum(matrix.error.weight_squares for matrix in self.stored)).relative_rms

    @property
    def worst(self) -> tuple[StoredMatrix, ...]:
        """The stored weights with the largest relative errors, the largest first."""
        return tuple(sorted(self.stored, key=lambda matrix: -matrix.error.relative_rms)[:_NAMED])

    @property
    def lines(self) -> tuple[str, ...]:
        """For people: one line each on what is stored, how exactly, and what was left out."""
        before = 4 * sum(matrix.parameters for matrix in self.stored)
        after = sum(matrix.stored_bytes for matrix in self.stored)
        worst = ", ".join(f"{matrix.name} {matrix.error.relative_rms:.2%}" for matrix in self.worst)
        lines = [
            f"{len(self.stored)} weights stored as {self.weight_format}: {byte_text(after)} instead of "
            + byte_text(before),
            f"relative RMS error of the weights: {self.relative_rms:.2%} in total; largest: {worst}",
        ]
        if self.left:
            largest = sorted(self.left, key=lambda weight: -weight.parameters)
            named = "; ".join(f"{weight.name}, {weight.reason}" for weight in largest[:_NAMED])
            more = f"; and {len(largest) - _NAMED} more" if len(largest) > _NAMED else ""
            size = byte_text(4 * sum(weight.parameters for weight in largest))
            lines.append(f"{len(largest)} weights left as they were ({size} in float32): {named}{more}")
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "format": self.weight_format.to_dict(),
            "relative_rms": self.relative_rms,
            "stored": [
                {
                    "name": matrix.name,
                    "parameters": matrix.parameters,
                    "bytes": matrix.stored_bytes,
                    "relative_rms": matrix.error.relative_rms,
                }
                for matrix in self.stored
            ],
            "left": [dataclasses.asdict(weight) for weight in self.left],
        }
