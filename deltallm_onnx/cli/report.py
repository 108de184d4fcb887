"""`deltallm-onnx report`: one page about a rewritten model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.cli.dense_baseline import dense_baseline
from deltallm_onnx.cli.output import print_note, status


def report_command(
    model: Annotated[Path, typer.Argument(metavar="X.onnx", help="A rewritten model.")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page to write.")],
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text to read: quality, sparsity, attention, caches.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="Y.onnx | DIR",
            help="The dense model, to say what held keys cost, or the model directory it is traced from.",
        ),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="deltallm.json [default: the one beside the model].")
    ] = None,
    study: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="JSON of a sweep; may repeat.")] = None,
    record: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Run record with timings, as 'bench --json'; may repeat.")
    ] = None,
    window_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Tokens of a window [default: 1024, or what fits].")
    ] = None,
    windows: Annotated[int, typer.Option(metavar="N", help="Windows to read at most, spread over the text.")] = 4,
    sample_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of the text for attention maps and run lengths.")
    ] = 256,
    maps: Annotated[int, typer.Option(metavar="N", help="Attention maps to show, one per layer.")] = 3,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads within an operator [default: ONNX Runtime's choice].")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every number of the page there too.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the pictures there as PNG too.")] = None,
) -> None:
    """Show sparsity, quality, attention, runs, bytes and times on one page that loads nothing."""
    from deltallm_onnx.report import ReportRequest, write_report  # noqa: PLC0415  # lazily: needs the extra `report`
    from deltallm_onnx.report.model_facts import inspect_rewritten  # noqa: PLC0415
    from deltallm_onnx.report.page import HEADINGS  # noqa: PLC0415
    from deltallm_onnx.report.write import check_paths  # noqa: PLC0415

    request = ReportRequest(
        model=model,
        baseline=baseline,
        text=text,
        calibration=calibration,
        studies=tuple(study or ()),
        records=tuple(record or ()),
        window_tokens=window_tokens,
        windows=windows,
        sample_tokens=sample_tokens,
        maps=maps,
        threads=threads,
    )
    # Before minutes of tracing.
    check_paths(request, out, json_file, png)
    inspect_rewritten(model)
    with dense_baseline(baseline) as beside:
        if beside != baseline:
            request = dataclasses.replace(request, baseline=beside, baseline_name=str(baseline))
        with status("Opening the model") as say:
            data, files = write_report(request, out, json_file=json_file, png_folder=png, progress=say)
    for path in files[: 1 if json_file is None else 2]:
        print(path)
    if png is not None:
        print_note(f"{len(files) - (1 if json_file is None else 2)} pictures in {png}")
    for name, sentence in data["left_out"].items():
        print_note(f"left out: {HEADINGS[name]}. {sentence}")
