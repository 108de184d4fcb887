"""The short calibration that `convert` makes of the model it has just traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from deltallm_onnx.calibration.api import calibrate_files
from deltallm_onnx.calibration.bill import bill, duration
from deltallm_onnx.calibration.calibrate import Silent
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.request import Request
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.calibration.source import ModelFiles
from deltallm_onnx.errors import DeltaLLMError

#: KL divergence in nats per token: about what good 5-bit weights cost.
DEFAULT_BUDGET = "kl=0.01"
#: Seconds that nobody is kept waiting for what was not asked for.
PATIENCE = 600


@dataclasses.dataclass(frozen=True)
class ShortCalibration:
    """Calibrates a dense model on the bundled text.

    Attributes:
        model: name of the model, for the result.
        request: budget and candidates, of effort "short".
        insist: whether a calibration that is not possible is refused, and one that takes long is made; otherwise it is
            left out and told.
    """

    model: str
    request: Request
    insist: bool

    def __call__(self, dense: Path, say: Callable[[str], None]) -> Calibration | str:
        """Calibrate.

        Args:
            dense: the .onnx file, tokenizer and config.json beside it; the folder takes temporary files.
            say: receives one line per step.

        Returns:
            The calibration, or a sentence that says why there is none.

        Raises:
            DeltaLLMError: where it is not possible, and was asked for.
        """
        try:
            files = ModelFiles.of(dense, self.model)
            return calibrate_files(
                files,
                self.request,
                journal=Journal(None),
                scratch=dense.parent,
                progress=_Steps(say, math.inf if self.insist else PATIENCE),
            )
        except DeltaLLMError as error:
            if self.insist:
                raise
            return f"not calibrated, and what the default thresholds cost this model was not measured: {error}"


class _Steps(Silent):
    """Progress as lines."""

    def __init__(self, say: Callable[[str], None], patience: float) -> None:
        self._say, self._patience = say, patience

    def begin(self, reads: int, seconds: float) -> None:
        """See `Progress`; refuses what takes too long."""
        if seconds > self._patience:
            raise DeltaLLMError(
                f"{reads} readings of text would take up to {duration(seconds)} here; --calibrate makes "
                "them all the same, and 'deltallm-onnx calibrate' makes more."
            )
        self._say(f"Calibrating: {bill(reads, seconds)}")

    def step(self, what: str) -> None:
        """See `Progress`."""
        self._say(f"Calibrating: {what}")

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._say(f"Calibrating: {text}")
