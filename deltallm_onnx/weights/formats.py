"""How weight matrices are stored, as the user asks for it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

from deltallm_onnx.errors import DeltaLLMError

WeightName = Literal["float32", "float16", "int8", "int4"]

#: Weights that share a scale: what ONNX Runtime's kernels are written for.
BLOCK_SIZES = (16, 32, 64, 128, 256)
#: 0 multiplies in float32, 4 rounds the activations to int8 as well (accuracy_level of MatMulNBits).
ACCURACY_LEVELS = (0, 4)
_BITS = {"int8": 8, "int4": 4}


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """The storage of weight matrices.

    Attributes:
        name: "float32", "float16", or "int8" and "int4": codes with a scale per block, for MatMulNBits.
        block_size: weights that share a scale, along the summed dimension K. The last three are for int8 and int4
            only; None stands for 32, symmetric, and the fastest accuracy level that is right everywhere.
        symmetric: codes mean −s·2ᵇ⁻¹ … s·(2ᵇ⁻¹−1); else every block has a zero point of its own.
        accuracy_level: 0 = float32 arithmetic, 4 = activations are rounded to int8 block by block, which is faster.

    Raises:
        DeltaLLMError: for a value outside its range, for block options beside a float format, and for asymmetric int4
            weights with accuracy level 4.
    """

    name: WeightName = "float32"
    block_size: int | None = None
    symmetric: bool | None = None
    accuracy_level: int | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(WeightName):
            raise DeltaLLMError(f"weights is {self.name!r}: choose one of {', '.join(get_args(WeightName))}.")
        options = {
            "block size": self.block_size,
            "symmetry": self.symmetric,
            "accuracy level": self.accuracy_level,
        }
        given = [name for name, value in options.items() if value is not None]
        if self.name not in _BITS:
            if given:
                raise DeltaLLMError(f"{self.name} weights have no {given[0]}: leave it out, or choose int8 or int4.")
            return
        self._fill("block_size", 32)
        self._fill("symmetric", value=True)
        self._fill("accuracy_level", 4 if self.symmetric or self.name == "int8" else 0)
        _check_choice("block size", self.block_size, BLOCK_SIZES)
        _check_choice("accuracy level", self.accuracy_level, ACCURACY_LEVELS)
        if self.name == "int4" and not self.symmetric and self.accuracy_level:
            # onnxruntime issue 29853: MLAS on AVX2, one row of activations
            raise DeltaLLMError(
                "Asymmetric int4 weights with accuracy level 4 give wrong results on processors without AVX-512: "
                "choose symmetric weights or accuracy level 0."
            )

    def _fill(self, field: str, value: int) -> None:
        if getattr(self, field) is None:
            object.__setattr__(self, field, value)

    @property
    def bits(self) -> int:
        """Bits of a code; 0 for float formats."""
        return _BITS.get(self.name, 0)

    def to_dict(self) -> dict[str, Any]:
        """The fields that mean something for this format, as JSON-ready values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    def __str__(self) -> str:
        if not self.bits:
            return self.name
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"{self.name} (blocks of {self.block_size}, {kind}, accuracy level {self.accuracy_level})"


def _check_choice(what: str, value: int | None, allowed: tuple[int, ...]) -> None:
    if value not in allowed:
        raise DeltaLLMError(f"The {what} is {value}: choose one of {', '.join(map(str, allowed))}.")
