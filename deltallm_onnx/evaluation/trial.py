"""A model and a baseline reading the same windows, prediction by prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.log_probabilities import Predictions, score
from deltallm_onnx.evaluation.reading import Call, Reader, calls
from deltallm_onnx.evaluation.vocabulary import refuse_other_vocabulary

Array = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class CacheUse:
    """What one window took in a model's caches.

    Attributes:
        counters: of the calls that read it, without those of the last token in mode "prefill"; None for a model that
            does not count.
        bytes_read: keys and values that the decode step of the last token read, all counted layers; None likewise.
        bytes_in_use: all layers, after the last token.
        bytes_allocated: of the buffers then.
    """

    counters: Counters | None
    bytes_read: float | None
    bytes_in_use: int
    bytes_allocated: int


@dataclasses.dataclass(frozen=True)
class WindowResult:
    """One window: scores of its predictions, and the caches of the model and of the baseline."""

    predictions: Predictions
    use: CacheUse
    baseline_use: CacheUse | None


class Trial:
    """A model, and maybe a baseline beside it.

    Args:
        model: what is judged.
        baseline: what its predictions are held against.

    Raises:
        DeltaLLMError: where the vocabularies differ.
    """

    def __init__(self, model: Reader, baseline: Reader | None = None) -> None:
        if baseline is not None:
            refuse_other_vocabulary(model.path, model.vocabulary, baseline.path, baseline.vocabulary)
        self.model = model
        self.baseline = baseline

    def read(self, window: Array, *, prompt: int = 0, first: int = 1) -> WindowResult:
        """Read one window from empty caches and score its predictions.

        Args:
            window: token ids [S], S ≥ 2.
            prompt: tokens of the prompt in mode "decode", 1 … S − 2; predictions of its calls are not scored.
            first: position of the first token whose prediction is scored, 1 … S − 1.

        Returns:
            Scores of the predicted tokens from the later of `first` and `prompt` + 1 on.

        Raises:
            DeltaLLMError: for a token outside the vocabulary, where a call fails, and where a model gives NaN.
        """
        S, mode = len(window), self.model.mode
        largest = int(window.max())
        if largest >= self.model.vocabulary:
            raise DeltaLLMError(
                f"The text has the token {largest}, and {self.model.path} knows those below {self.model.vocabulary}: "
                "give the model's own tokenizer (--tokenizer)."
            )
        plan = calls(mode, S, prompt, self.model.vocabulary)
        readers = [reader for reader in (self.model, self.baseline) if reader is not None]
        runs = [_Run(reader, S) for reader in readers]
        if mode == "decode":
            first = max(first, prompt + 1)
        scored = []
        for call in plan:
            logits = [run.step(call, window) for run in runs]
            # The logits at position t predict token t + 1; what follows the window is not known.
            begin, end = max(call.begin, first - 1), min(call.end, S - 1)
            if begin < end:
                rows = slice(begin - call.begin, end - call.begin)
                scored.append(score(logits[0][rows], window[begin + 1 : end + 1], *(x[rows] for x in logits[1:])))
        predictions = joined(scored)
        self._refuse_nan(predictions)
        return WindowResult(predictions, runs[0].use(), runs[1].use() if len(runs) > 1 else None)

    def _refuse_nan(self, predictions: Predictions) -> None:
        losses = ((self.model, predictions.loss), (self.baseline, predictions.baseline_loss))
        for reader, loss in losses:
            if reader is not None and loss is not None and np.isnan(loss).any():
                raise DeltaLLMError(f"{reader.path} gives NaN for {np.isnan(loss).sum()} of {loss.size} predictions.")


class _Run:
    """One reader in one window."""

    def __init__(self, reader: Reader, tokens: int) -> None:
        self._reader = reader
        self._cache = reader.new_cache(tokens)
        self._counters: Counters | None = None
        self._bytes_read: float | None = None

    def step(self, call: Call, window: Array) -> npt.NDArray[np.float32]:
        """Make a call and return its logits."""
        logits, statistics = self._reader.step(window[call.begin : call.end], self._cache, decodes=call.decodes)
        if statistics:
            # A call of one token may also be what is left of the others; the last token is always a decode step.
            is_last = call.end == len(window)
            found = Counters.from_statistics(
                statistics, cached_tokens=self._cache.length, decoded_tokens=1 if is_last else 0
            )
            self._bytes_read = found.kv_bytes_read
            if not (is_last and self._reader.mode == "prefill"):
                self._counters = found if self._counters is None else self._counters + found
        return logits

    def use(self) -> CacheUse:
        return CacheUse(self._counters, self._bytes_read, self._cache.bytes_in_use, self._cache.bytes_allocated)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions one behind the other; all of them with a baseline, or none."""

    def column(name: str) -> Any:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else np.concatenate(found)

    return Predictions(**{field.name: column(field.name) for field in dataclasses.fields(Predictions)})
