"""The options that say how weights are stored, shared by `convert` and `rewrite`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, get_args

import typer

from deltallm_onnx.cli.option_groups import takes
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.weights.formats import ACCURACY_LEVELS, BLOCK_SIZES, WeightFormat, WeightName


def _listed(values: tuple[object, ...]) -> str:
    return " | ".join(map(str, values))


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """What the user said; None means not said."""

    weights: Annotated[
        str | None,
        typer.Option(
            metavar=_listed(get_args(WeightName)), help="Storage of weight matrices [default: as they are, in float32]."
        ),
    ] = None
    block_size: Annotated[
        int | None,
        typer.Option(metavar=_listed(BLOCK_SIZES), help="Weights of int8 and int4 that share a scale [default: 32]."),
    ] = None
    symmetric: Annotated[
        bool | None,
        typer.Option("--symmetric/--asymmetric", help="Whether such blocks lie around 0 [default: symmetric]."),
    ] = None
    accuracy_level: Annotated[
        int | None,
        typer.Option(
            metavar=_listed(ACCURACY_LEVELS),
            help="Arithmetic of int8 and int4 weights: 0 = float32, 4 = int8 activations [default: 4; 0 for asymmetric "
            "int4].",
        ),
    ] = None

    def resolve(self) -> WeightFormat | None:
        """The format; None where nothing was said.

        Raises:
            DeltaLLMError: for a value out of range, and for block options without --weights.
        """
        if self.weights is not None:
            return WeightFormat(
                name=self.weights,  # type: ignore[arg-type]  # checked there, with a sentence
                block_size=self.block_size,
                symmetric=self.symmetric,
                accuracy_level=self.accuracy_level,
            )
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]
        if given:
            option = {"block_size": "--block-size", "accuracy_level": "--accuracy-level"}.get(given[0], "--symmetric")
            raise DeltaLLMError(f"{option} is for quantised weights: give --weights int8 or --weights int4 with it.")
        return None


takes_weights_options = takes(WeightsOptions, "storage")
"""Lets a command take every field of `WeightsOptions` as an option, gathered into its parameter `storage`."""
