"""Whether `convert` calibrates, and for what."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deltallm_onnx.cli.delta_options import DeltaOptions
from deltallm_onnx.cli.output import print_note
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.hold_rules import find_rule
from deltallm_onnx.model_folder import calibration_path

if TYPE_CHECKING:  # importing it for real takes as long as the passes do
    from deltallm_onnx.calibration.default import ShortCalibration

#: Options that choose thresholds themselves.
_CHOICES = ("profile", "config", "plan", "threshold")


def short_calibration(
    model: str, out: Path, config: DeltaConfig, options: DeltaOptions, *, budget: str | None, wanted: bool | None
) -> ShortCalibration | None:
    """The calibration that `convert` makes; None for none.

    Args:
        model: the source.
        out: the target; the journal of measurements lies beside it.
        config: what the options say.
        options: the command's options.
        budget: --budget, if given.
        wanted: --calibrate or --no-calibrate; None where neither was given.

    Raises:
        DeltaLLMError: for options that contradict each other, and for a budget of no known form.
    """
    chosen = next((f"--{name}" for name in _CHOICES if getattr(options, name) is not None), None)
    asked = "--budget" if budget is not None else "--calibrate" if wanted else None
    other = "--no-calibrate" if wanted is False else chosen
    if asked is not None and other is not None:
        raise DeltaLLMError(f"{asked} asks for thresholds to be found, and {other} says otherwise: leave out one.")
    if other is not None:
        options.refuse_rule_to_calibrate(config)
        return None
    from deltallm_onnx.calibration.default import DEFAULT_BUDGET, ShortCalibration  # noqa: PLC0415  # lazily: see above
    from deltallm_onnx.calibration.journal import journal_path  # noqa: PLC0415
    from deltallm_onnx.calibration.request import request_for  # noqa: PLC0415

    request = request_for(
        budget or DEFAULT_BUDGET,
        config,
        v_skip=config.v_skip,
        rules=None if options.rule is None else (options.rule,),
        effort="short",
        windows=(config.window,),
    )
    # The default threshold means nothing to a rule that needs statistics.
    needed = options.rule is not None and find_rule(config.granularity, options.rule).calibrated
    return ShortCalibration(
        model,
        request,
        insist=asked is not None or needed,
        journal=journal_path(calibration_path(out)),
        keep=print_note,
    )
