"""What deltallm.json says: the budget that was asked for, what was reached, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.plan_file import read_calibration
from deltallm_onnx.model_folder import calibration_path
from deltallm_onnx.report.json_files import number, section
from deltallm_onnx.report.request import ReportRequest
from deltallm_onnx.weights.formats import WeightName

_MOST_NOTES = 20

USUAL_NAME = "deltallm.json"
_SCORES = (
    "kl",
    "perplexity",
    "baseline_perplexity",
    "perplexity_increase",
    "top1_agreement",
    "delta_sparsity",
    "qk_mac_sparsity",
    "attn_mac_sparsity",
    "kv_bytes_per_token",
    "kv_bytes_read",
    "seconds",
)


@dataclasses.dataclass(frozen=True)
class CalibrationFile:
    """A calibration file, or why there is none.

    Attributes:
        path: of the file; None where there is none for this model.
        data: its content.
        own: whether the model has this file's thresholds.
        left_out: what to say where there is none.
    """

    path: Path | None
    data: dict[str, Any]
    own: bool
    left_out: str

    @property
    def points(self) -> bool:
        """Whether it lists measurements."""
        return bool(self.data.get("search"))


def find_calibration(request: ReportRequest, metadata: Mapping[str, Any]) -> CalibrationFile:
    """The calibration file of a request, else the one beside the model if the model has its thresholds.

    Args:
        request: names the model and maybe the file.
        metadata: the model's.

    Raises:
        DeltaLLMError: for a file that is no calibration.
    """
    nothing = "It needs a calibration: give --calibration deltallm.json, or write one with 'deltallm-onnx calibrate'."
    # A conversion names its calibration after the model, `calibrate` does not.
    own_name = calibration_path(request.model)
    path = request.calibration or (own_name if own_name.is_file() else own_name.with_name(USUAL_NAME))
    if request.calibration is None and not path.is_file():
        return CalibrationFile(None, {}, own=False, left_out=nothing)
    data = read_calibration(path)
    own = AttentionPlan.from_dict(data, str(path)).sha256 == section(metadata, "deltallm.plan").get("sha256")
    if request.calibration is None and not own:
        other = f"The model was not written with the thresholds of the {path.name} beside it. {nothing}"
        return CalibrationFile(None, {}, own=False, left_out=other)
    return CalibrationFile(path, data, own, nothing)


def calibration_section(found: CalibrationFile) -> dict[str, Any] | None:
    """Budget, scores, rules by layer and notes, JSON-ready; None without a file."""
    if found.path is None:
        return None
    reached = section(found.data, "reached")
    parts = {part: _scores(section(reached, part)) for part in ("calibration", "verification")}
    return {
        "file": found.path.name,
        "own": found.own,
        "budget": {key: value for key, value in section(found.data, "budget").items() if _is_plain(value)},
        "reached": {part: scores for part, scores in parts.items() if scores},
        "weights": _weights(section(found.data, "weights")),
        "rules": {layer: rule for layer, rule in section(found.data, "rules").items() if isinstance(rule, str)},
        "notes": _sentences(found.data.get("notes")),
        "seed": number(found.data, "seed"),
    }


def _scores(part: Mapping[str, Any]) -> dict[str, float]:
    """Known numbers, also those one level deeper, such as counters."""
    nested = [part, *(value for value in part.values() if isinstance(value, dict))]
    scores: dict[str, float] = {}
    for name in _SCORES:
        values = [value for level in nested if (value := number(level, name)) is not None]
        if values:
            scores[name] = values[0]
    return scores


def _weights(cost: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the weights' storage cost by itself; None where it was not measured."""
    numbers = {name: number(cost, name) for name in ("kl", "perplexity_increase")}
    if cost.get("name") not in get_args(WeightName) or None in numbers.values():
        return None
    return {"name": cost["name"], **numbers}


def _sentences(notes: Any) -> list[str]:
    """What the calibration wants its user to know."""
    found = notes if isinstance(notes, list) else []
    return [note for note in found if isinstance(note, str)][:_MOST_NOTES]


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool) or number({"value": value}, "value") is not None
