"""What a report is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from deltallm_onnx.errors import DeltaLLMError

#: Tokens of a window, of which as many as the context and the text allow.
USUAL_WINDOW = 1024
#: Maps are as large as the square of the sample.
LONGEST_SAMPLE = 2048


@dataclasses.dataclass(frozen=True)
class ReportRequest:
    """Inputs of a report. What is None or empty leaves out what needs it, and the report says so.

    Attributes:
        model: a rewritten .onnx file.
        baseline: the dense .onnx file it was made from; needs a text.
        baseline_name: what the report calls it; None: by its file's name.
        text: a text file in the model's language.
        calibration: deltallm.json; None takes the one beside the model, if there is one.
        studies: JSON files of sweeps.
        records: run records with timings.
        window_tokens: tokens of each window that is read; None: 1024, or what the context and the text allow.
        windows: how many at most, spread over the text.
        sample_tokens: tokens from the beginning of the text for attention maps and runs.
        maps: attention maps shown at most.
        threads: within an operator; None leaves the choice to ONNX Runtime.

    Raises:
        DeltaLLMError: for a number outside its range, and for a baseline without a text.
    """

    model: Path
    baseline: Path | None = None
    baseline_name: str | None = None
    text: Path | None = None
    calibration: Path | None = None
    studies: tuple[Path, ...] = ()
    records: tuple[Path, ...] = ()
    window_tokens: int | None = None
    windows: int = 4
    sample_tokens: int = 256
    maps: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.baseline is not None and self.text is None:
            raise DeltaLLMError(
                f"{self.baseline_name or self.baseline} is given without a text for both models to read: give --text "
                "FILE."
            )
        limits = {"windows": (1, 4096), "sample_tokens": (2, LONGEST_SAMPLE), "maps": (0, 64)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise DeltaLLMError(f"{_option(name)} is {value}: give a whole number from {least} to {most}.")
        for name, least in {"window_tokens": 2, "threads": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise DeltaLLMError(f"{_option(name)} is {value}: give a whole number of at least {least}.")


def _option(name: str) -> str:
    return name.replace("_", "-")
