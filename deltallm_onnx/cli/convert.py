"""`deltallm-onnx convert`: a Hugging Face model directory in, a rewritten .onnx out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.conversion import run_conversion
from deltallm_onnx.cli.delta_options import DeltaOptions, takes_delta_options
from deltallm_onnx.cli.dense_export import export_dense
from deltallm_onnx.cli.interrupt import keeping_measurements
from deltallm_onnx.cli.ort_options import OrtOptions, takes_ort_options
from deltallm_onnx.cli.short_calibration import short_calibration
from deltallm_onnx.cli.weights_options import WeightsOptions, takes_weights_options
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.side_files import context_length


@takes_delta_options
@takes_weights_options
@takes_ort_options
def convert_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory with config.json and safetensors, or a hub id.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .onnx or .ort model to write.")],
    *,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="kl=X | ppl=+X% | …", help="Find thresholds that keep it, as calibrate does [default: kl=0.01]."
        ),
    ] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Find thresholds by a short calibration [default: yes, unless they are given or a profile is named].",
        ),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the model as it is traced, for rewrite and --baseline.")
    ] = False,
    ternary_bits: Annotated[
        int,
        typer.Option(metavar="2 | 4", help="Codes of BitNet's ternary weights: 4 for ONNX Runtime before 1.28."),
    ] = 2,
    options: DeltaOptions,
    storage: WeightsOptions,
    ort: OrtOptions,
) -> None:
    """Trace a Hugging Face causal language model, rewrite its attention, and write an .onnx or .ort model."""
    weights = storage.resolve()
    if Path(model).is_file() and Path(model).suffix == ".onnx":
        raise DeltaLLMError(
            f"{model} is an .onnx file, and convert takes the model directory it was made from: give that, or use "
            f"'deltallm-onnx rewrite {model} {out}'."
        )
    if dense:
        if ort.wanted(out):
            raise DeltaLLMError(f"--dense writes an .onnx, for rewrite and --baseline: end {out} in .onnx.")
        if budget is not None or calibrate is not None:
            raise DeltaLLMError("--dense leaves out delta attention: leave out --budget and --calibrate.")
        export_dense(model, out, options, weights=weights, ternary_bits=ternary_bits)
        return
    config = options.resolve(context_length(Path(model)))
    calibration = short_calibration(model, out, config, options, budget=budget, wanted=calibrate)
    from deltallm_onnx.convert import convert  # noqa: PLC0415  # lazily: torch takes seconds to import

    action = functools.partial(convert, ternary_bits=ternary_bits, calibrate=calibration)
    again = "the same command traces the model anew and goes on from there"
    with keeping_measurements(None if calibration is None else calibration.journal, again):
        run_conversion(
            ort.applied(action, out), "Converting", model, out, config=config, options=options, weights=weights
        )
