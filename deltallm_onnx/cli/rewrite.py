"""`deltallm-onnx rewrite`: a dense .onnx in, a rewritten .onnx out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.conversion import run_conversion
from deltallm_onnx.cli.delta_options import DeltaOptions, takes_delta_options
from deltallm_onnx.cli.ort_options import OrtOptions, takes_ort_options
from deltallm_onnx.cli.weights_options import WeightsOptions, takes_weights_options
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.side_files import context_length


@takes_delta_options
@takes_weights_options
@takes_ort_options
def rewrite_command(
    model: Annotated[Path, typer.Argument(metavar="IN", help="A dense .onnx model, or a folder with one.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx or .ort model, or the new folder, to write.")],
    *,
    options: DeltaOptions,
    storage: WeightsOptions,
    ort: OrtOptions,
) -> None:
    """Replace the attention of a dense .onnx model, and write the result."""
    config = options.resolve(context_length(model if model.is_dir() else model.parent))
    options.refuse_rule_to_calibrate(config)
    weights = storage.resolve()
    if model.is_dir() and ort.wanted(out):
        raise DeltaLLMError(f"{model} is a folder, and an .ort is made from one file: name the .onnx in it.")
    from deltallm_onnx.convert import rewrite  # noqa: PLC0415  # lazily: the other commands start without it

    run_conversion(ort.applied(rewrite, out), "Rewriting", model, out, config=config, options=options, weights=weights)
