"""`deltallm-onnx convert`: a Hugging Face model directory in, a rewritten .onnx out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.conversion import run_conversion
from deltallm_onnx.cli.delta_options import DeltaOptions, takes_delta_options
from deltallm_onnx.cli.weights_options import WeightsOptions, takes_weights_options
from deltallm_onnx.runtime.side_files import context_length


@takes_delta_options
@takes_weights_options
def convert_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory with config.json and safetensors, or a hub id.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The model to write.")],
    *,
    ternary_bits: Annotated[
        int,
        typer.Option(metavar="2 | 4", help="Codes of BitNet's ternary weights: 4 for ONNX Runtime before 1.28."),
    ] = 2,
    options: DeltaOptions,
    storage: WeightsOptions,
) -> None:
    """Trace a Hugging Face causal language model, rewrite its attention, and write an .onnx model."""
    config = options.resolve(context_length(Path(model)))
    weights = storage.resolve()
    from deltallm_onnx.convert import convert  # noqa: PLC0415  # lazily: torch takes seconds to import

    action = functools.partial(convert, ternary_bits=ternary_bits)
    run_conversion(action, "Converting", model, out, config=config, options=options, weights=weights)
