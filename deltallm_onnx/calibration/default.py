"""The short calibration that `convert` makes of the model it has just traced."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from deltallm_onnx.calibration.api import calibrate_files, text_parts
from deltallm_onnx.calibration.bill import bill, duration
from deltallm_onnx.calibration.calibrate import Silent
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.request import Request
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.calibration.source import ModelFiles
from deltallm_onnx.calibration.weights_cost import measure_weights
from deltallm_onnx.errors import DeltaLLMError

#: KL divergence in nats per token: about what good 5-bit weights cost.
DEFAULT_BUDGET = "kl=0.01"
#: Seconds that nobody is kept waiting for what was not asked for.
PATIENCE = 600


class Calibrator(Protocol):
    """Finds thresholds for a model that `convert` has traced."""

    def __call__(
        self, dense: Path, say: Callable[[str], None], *, before: Path | None = None, weights: str = ""
    ) -> Calibration | str:
        """Calibrate.

        Args:
            dense: the .onnx file, tokenizer and config.json beside it; the folder takes temporary files.
            say: receives one line per step.
            before: the same model with its weights as they were, to measure what their storage costs; None does not.
            weights: name of that storage, such as "int4"; empty where the weights are as they were.

        Returns:
            The calibration, or a sentence that says why there is none.
        """


@dataclasses.dataclass(frozen=True)
class ShortCalibration:
    """Calibrates a dense model on the bundled text.

    Attributes:
        model: name of the model, for the result.
        request: budget and candidates, of effort "short".
        insist: whether a calibration that is not possible is refused, and one that takes long is made; otherwise it is
            left out and told.
        journal: file of measurements, there only while the calibration runs and after it was interrupted; None keeps
            them in memory alone.
        keep: receives the lines that should stay in sight; None gives them to the other lines' receiver.
    """

    model: str
    request: Request
    insist: bool
    journal: Path | None = None
    keep: Callable[[str], None] | None = None

    def __call__(
        self, dense: Path, say: Callable[[str], None], *, before: Path | None = None, weights: str = ""
    ) -> Calibration | str:
        """As in `Calibrator`.

        Raises:
            DeltaLLMError: where it is not possible, and was asked for.
        """
        steps = _Steps(say, self.keep or say, math.inf if self.insist else PATIENCE)
        journal = self._journal(steps)
        try:
            files = ModelFiles.of(dense, self.model)
            parts = text_parts(files, self.request)
            steps.more = 0 if before is None else 2 * len(parts.verification)
            found = calibrate_files(files, self.request, journal=journal, scratch=dense.parent, progress=steps)
            if before is not None:
                steps.step(f"what {weights} weights cost by themselves")
                cost = measure_weights(
                    before,
                    dense,
                    parts.verification,
                    name=weights,
                    folder=dense.parent,
                    seed=self.request.seed,
                    threads=self.request.threads,
                )
                found = dataclasses.replace(found, weights=cost)
        except DeltaLLMError as error:
            journal.remove()
            if self.insist:
                raise
            return f"not calibrated, and what the default thresholds cost this model was not measured: {error}"
        journal.remove()
        return found

    def _journal(self, steps: _Steps) -> Journal:
        """Of a run that was interrupted; for a damaged one nobody is stopped."""
        try:
            journal = Journal(self.journal)
        except DeltaLLMError:
            steps.note(f"{self.journal} is damaged and begun anew")
            return Journal(self.journal, resume=False)
        if len(journal):
            steps.note(journal.told)
        return journal


class _Steps(Silent):
    """Progress as lines.

    Attributes:
        more: windows that are read beside the calibration's.
    """

    def __init__(self, say: Callable[[str], None], keep: Callable[[str], None], patience: float) -> None:
        self._say, self._keep, self._patience = say, keep, patience
        self.more = 0

    def begin(self, reads: int, seconds: float) -> None:
        """See `Progress`; refuses what takes too long."""
        reads, seconds = reads + self.more, seconds * (reads + self.more) / reads
        if seconds > self._patience:
            raise DeltaLLMError(
                f"{reads} readings of text would take up to {duration(seconds)} here; --calibrate makes "
                "them all the same, and 'deltallm-onnx calibrate' makes more."
            )
        self._keep(f"Calibrating: {bill(reads, seconds)}")

    def step(self, what: str) -> None:
        """See `Progress`."""
        self._say(f"Calibrating: {what}")

    def note(self, text: str) -> None:
        """See `Progress`."""
        self._keep(f"Calibrating: {text}")
