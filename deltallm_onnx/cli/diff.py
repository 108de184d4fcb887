"""`deltallm-onnx diff`: how two models differ in structure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.output import print_json


def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A.onnx", help="The model before.")],
    b: Annotated[Path, typer.Argument(metavar="B.onnx", help="The model after.")],
    *,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Leave something out, such as names or metadata; may repeat."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare the structure of two models; leaves with 1 where they differ."""
    from deltallm_onnx.diff import diff  # noqa: PLC0415  # lazily: the other commands start without it

    difference = diff(a, b, ignore=tuple(ignore or ()))
    if json_output:
        print_json(difference.to_dict())
    else:
        print(difference.to_text(), end="")
    if not difference.is_empty:
        raise typer.Exit(1)
