"""Whether `convert` calibrates, and for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltallm_onnx.cli.delta_options import DeltaOptions
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError

if TYPE_CHECKING:  # importing it for real takes as long as the passes do
    from deltallm_onnx.calibration.default import ShortCalibration

#: Options that choose thresholds themselves.
_CHOICES = ("profile", "config", "plan", "threshold")


def short_calibration(
    model: str, config: DeltaConfig, options: DeltaOptions, *, budget: str | None, wanted: bool | None
) -> ShortCalibration | None:
    """The calibration that `convert` makes; None for none.

    Args:
        model: the source.
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
        return None
    from deltallm_onnx.calibration.default import DEFAULT_BUDGET, ShortCalibration  # noqa: PLC0415  # lazily: see above
    from deltallm_onnx.calibration.request import request_for  # noqa: PLC0415
    from deltallm_onnx.calibration.rules import RULES  # noqa: PLC0415

    rules = None
    if options.row_rule is not None and config.granularity == "row":
        rules = tuple(
            name for (kind, name), rule in RULES.items() if kind == "row" and rule.row_rule == options.row_rule
        )
    request = request_for(
        budget or DEFAULT_BUDGET, config, v_skip=config.v_skip, rules=rules, effort="short", windows=(config.window,)
    )
    return ShortCalibration(model, request, insist=asked is not None)
