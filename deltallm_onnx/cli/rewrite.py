"""`deltallm-onnx rewrite`: a dense .onnx in, a rewritten .onnx out."""

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
def rewrite_command(
    model: Annotated[Path, typer.Argument(metavar="IN", help="A dense .onnx model, or a folder with one.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx model, or the new folder, to write.")],
    *,
    options: DeltaOptions,
    storage: WeightsOptions,
) -> None:
    """Replace the attention of a dense .onnx model, and write the result."""
    config = options.resolve(context_length(model if model.is_dir() else model.parent))
    weights = storage.resolve()
    from deltallm_onnx.convert import rewrite  # noqa: PLC0415  # lazily: the other commands start without it

    run_conversion(rewrite, "Rewriting", model, out, config=config, options=options, weights=weights)
