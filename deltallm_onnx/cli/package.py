"""`deltallm-onnx package`: one folder with everything that a device needs to run a rewritten model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from deltallm_onnx.cli.option_groups import one_of
from deltallm_onnx.cli.output import print_json, status
from deltallm_onnx.ort_format import OrtForm
from deltallm_onnx.package import TARGETS, ModelFormat, PackageRequest, package_model


def package_command(
    model: Annotated[Path, typer.Argument(metavar="X.onnx", help="A rewritten model.")],
    *,
    target: Annotated[str, typer.Option(metavar=" | ".join(TARGETS), help="Where it will run.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write: new, or empty.")],
    model_format: Annotated[
        str,
        typer.Option("--format", metavar=one_of(ModelFormat), help="The model as it is, as an .ort, or as both."),
    ] = "onnx",
    ort_form: Annotated[
        str | None,
        typer.Option(
            metavar=one_of(OrtForm),
            help="What an .ort has for delta attention: the library's operator, or its body [default: operator].",
        ),
    ] = None,
    library: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The operator library for the target [default: what was built here]."),
    ] = None,
    runner: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The C++ runner for the target [default: what was built here, if any]."),
    ] = None,
    onnxruntime: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ONNX Runtime's shared library for the target, to add it too.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", help="What the memory plan is for [default: the model's, at most 4096]."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put a model, its operator library, tokenizer, runner, checksums and how to load them into one folder."""
    # PackageRequest refuses what is none of the choices, in a sentence.
    request = PackageRequest(
        model=model,
        target=target,
        out=out,
        model_format=cast("ModelFormat", model_format),
        ort_form=cast("OrtForm | None", ort_form),
        library=library,
        runner=runner,
        onnxruntime=onnxruntime,
        context=context,
    )
    with status(f"Packaging {model} …") as say:
        result = package_model(request, progress=say)
    if json_output:
        print_json(result.to_dict())
    else:
        print(result)
