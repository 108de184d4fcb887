"""Trace a model into the folder that its files grow in, and keep its weights as they were while something compares."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deltallm_onnx.export.output import check_model_path, staged
from deltallm_onnx.model_folder import refuse_another_model
from deltallm_onnx.scratch_folder import scratch_folder
from deltallm_onnx.weights.formats import WeightFormat

if TYPE_CHECKING:  # importing it for real takes seconds
    from deltallm_onnx.export import ExportReport


@dataclasses.dataclass(frozen=True)
class StagedExport:
    """A dense model on its way.

    Attributes:
        folder: of its files, which move to their places when the block ends well.
        report: of the export.
        before: the same model with the weights it had before they were stored in another format; None where nobody
            asked for it, the format is float32, or it was left out for its size.
    """

    folder: Path
    report: ExportReport
    before: Path | None


@contextlib.contextmanager
def staged_export(
    model: str | Path,
    out_path: Path,
    *,
    weights: WeightFormat | None,
    ternary_bits: int,
    say: Callable[[str], None],
    keep_before: bool = False,
) -> Iterator[StagedExport]:
    """Trace a model, as `export_model` does, and write it when the block ends well.

    Args:
        model: a model directory, or a hub id.
        out_path: the .onnx file to write.
        weights: as in `export_model`.
        ternary_bits: as in `export_model`.
        say: receives one line per step.
        keep_before: whether the model with its weights as they were lies on disk too while the block runs.

    Raises:
        DeltaLLMError: as `export_model`, and where the output's folder belongs to another model.
    """
    from deltallm_onnx.export import export_model  # noqa: PLC0415  # lazily: torch takes seconds to import

    check_model_path(out_path)
    if Path(model).is_dir():
        refuse_another_model(Path(model), out_path)  # before minutes of tracing; what the hub names is not here yet
    with contextlib.ExitStack() as stack:
        before = None
        if keep_before and weights is not None and weights.name != "float32":
            # Under the target's name, so that the next run on it removes what a killed one left.
            before = stack.enter_context(scratch_folder(out_path.parent, out_path.name)) / "dense.onnx"
        folder = stack.enter_context(staged(out_path))
        report = export_model(
            model,
            folder / out_path.name,
            weights=weights,
            ternary_bits=ternary_bits,
            before=before,
            # What the user is told is where the files will be, not where they grow.
            progress=lambda line: say(line.replace(str(folder), str(out_path.parent))),
        )
        refuse_another_model(folder, out_path)
        yield StagedExport(folder, report, before if before is not None and before.is_file() else None)
