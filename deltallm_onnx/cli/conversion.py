"""What `convert` and `rewrite` share once the configuration stands: run, with a line of progress, and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deltallm_onnx.cli.delta_options import DeltaOptions
from deltallm_onnx.cli.output import print_json, status
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.weights.formats import WeightFormat

if TYPE_CHECKING:  # importing it for real takes as long as the passes do
    from deltallm_onnx.convert import ConvertReport


def run_conversion(
    action: Callable[..., ConvertReport],
    doing: str,
    model: str | Path,
    out: Path,
    *,
    config: DeltaConfig,
    options: DeltaOptions,
    weights: WeightFormat | None,
) -> None:
    """Call `deltallm_onnx.convert` or `rewrite`, and print its report.

    Args:
        action: one of the two; both take the same arguments.
        doing: what the progress line says, such as "Converting".
        model: the source.
        out: the target.
        config: settings of delta attention.
        options: the command's other options.
        weights: how to store the weights; None leaves them as they are.

    Raises:
        DeltaLLMError: as `action` does.
    """
    # A rewrite alone takes seconds; a log of a conversion shows for minutes where it is.
    with status(f"{doing} {model} …", lines=doing == "Converting") as show:
        report = action(
            model,
            out,
            config,
            plan=None if options.calibrated is None else options.calibrated[1],
            origin=options.origin,
            unfused=options.unfused,
            statistics=options.statistics,
            allow_partial=options.allow_partial,
            copy_library=options.copy_library,
            context=options.context,
            weights=weights,
            progress=show,
        )
    if options.json_output:
        print_json(report.to_dict())
    else:
        print(report)
