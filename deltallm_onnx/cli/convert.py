"""`deltallm-onnx convert`: a Hugging Face model directory in, a rewritten .onnx out."""

from __future__ import annotations

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
    options: DeltaOptions,
    storage: WeightsOptions,
) -> None:
    """Trace a Hugging Face causal language model, rewrite its attention, and write an .onnx model."""
    config = options.resolve(context_length(Path(model)))
    weights = storage.resolve()
    from deltallm_onnx.convert import convert  # noqa: PLC0415  # lazily: torch takes seconds to import

    run_conversion(convert, "Converting", model, out, config=config, options=options, weights=weights)
