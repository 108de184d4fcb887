"""`convert --dense`: the model as it is traced, for `rewrite` and for --baseline of eval, bench and report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.cli.delta_options import DeltaOptions
from deltallm_onnx.cli.output import print_json, status
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.genai_folder import GENAI_CONFIG
from deltallm_onnx.staged_export import staged_export
from deltallm_onnx.weights.formats import WeightFormat
from deltallm_onnx.weights.notes import weight_notes


def export_dense(
    model: str, out: Path, options: DeltaOptions, *, weights: WeightFormat | None, ternary_bits: int
) -> None:
    """Trace a model, write it without delta attention, and say what was written.

    A genai_config.json that names another model of the folder stays as it is.

    Args:
        model: a model directory, or a hub id.
        out: the .onnx file to write.
        options: of `convert`; only --json has a meaning here.
        weights: as in `export_model`.
        ternary_bits: as in `export_model`.

    Raises:
        DeltaLLMError: for options of delta attention, and as `export_model` does; nothing is written then.
    """
    for field in dataclasses.fields(options):
        if field.name != "json_output" and getattr(options, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise DeltaLLMError(f"--{name} is for delta attention, and --dense leaves it out: leave out one of them.")
    with (
        status(f"Tracing {model} …", lines=True) as show,
        staged_export(model, out, weights=weights, ternary_bits=ternary_bits, say=show) as staging,
    ):
        folder, report = staging.folder, staging.report
        taken = out.parent / GENAI_CONFIG
        if taken.is_file() and f'"{out.name}"' not in taken.read_text(encoding="utf-8", errors="replace"):
            (folder / GENAI_CONFIG).unlink()
        sizes = {out.parent / file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    total = sum(sizes.values())
    notes = (*report.notes, *weight_notes(report.weights))
    if options.json_output:
        files = [str(path) for path in sizes]
        print_json(
            {
                "path": str(out),
                "files": files,
                "layers": len(report.layers),
                "parameters": report.parameters,
                "weights": None if report.weights is None else report.weights.to_dict(),
                "notes": list(notes),
                "bytes_written": total,
                "seconds": round(report.seconds, 3),
            }
        )
        return
    weight_lines = () if report.weights is None else report.weights.lines
    for line in (f"{len(report.layers)} attention layers, dense", *weight_lines, *notes):
        print(line)
    print(f"wrote {out} ({len(sizes)} files, {byte_text(total)}, {report.seconds:.1f} s)")
