"""How far a rewritten model is from its dense one on real text: perplexity and Kullback-Leibler divergence.

Every window is read by one call. Held keys are active in such a call only where the model was written with
`prefill = "delta"`, or opened by `delta_form`; by the chunk property (docs/spec.md section 3) its outputs are those of
token-by-token decoding. With `prefill = "exact"` one call over a window reads everything exactly and would measure
nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.log_probabilities import score
from deltallm_onnx.evaluation.vocabulary import refuse_other_vocabulary
from deltallm_onnx.runtime.model import DecoderModel


@dataclasses.dataclass(frozen=True)
class Score:
    """A model's predictions on text.

    Attributes:
        tokens: predictions scored.
        perplexity: exp of the mean negative log-likelihood in nats.
        kl_to_reference: mean over the predictions of KL(reference ‖ model), in nats; 0 for the reference itself.
        seconds: wall time of the model's calls.
        counters: raw counts over all windows; None for a model without statistics outputs.
    """

    tokens: int
    perplexity: float
    kl_to_reference: float
    seconds: float
    counters: Counters | None


def compare(reference: DecoderModel, model: DecoderModel, windows: npt.NDArray[np.int64]) -> tuple[Score, Score]:
    """Score two models on the same windows, each read by one call from an empty cache.

    Args:
        reference: the dense model.
        model: the rewritten one.
        windows: token ids [N, S]; of each, S − 1 predictions are scored.

    Returns:
        The scores of `reference` and of `model`.

    Raises:
        DeltaLLMError: where a call fails, where the vocabularies differ, and where a model gives NaN.
    """
    readings = (_Reading(reference), _Reading(model))
    losses, divergence = [0.0, 0.0], 0.0
    for window in windows:
        logits_p, logits_q = (reading.read(window) for reading in readings)
        refuse_other_vocabulary(model.path, logits_q.shape[-1], reference.path, logits_p.shape[-1])
        found = score(logits_q, window[1:], logits_p)
        losses[0] += float(np.asarray(found.baseline_loss).sum())
        losses[1] += float(found.loss.sum())
        divergence += float(np.asarray(found.kl).sum())
    for decoder, loss in zip((reference, model), losses, strict=True):
        if math.isnan(loss):
            raise DeltaLLMError(f"{decoder.path} gives NaN: check its weights.")
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    first, second = (
        Score(tokens, math.exp(loss / tokens), own / tokens, reading.seconds, reading.counters)
        for loss, own, reading in zip(losses, (0.0, divergence), readings, strict=True)
    )
    return first, second


class _Reading:
    """One model reading window after window."""

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        self.seconds = 0.0
        self.counters: Counters | None = None

    def read(self, window: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Run one window [S] and return the logits [S − 1, V] of its predictions."""
        cache = self._model.new_cache(limit=len(window))
        began = time.perf_counter()
        logits, statistics = self._model.step(window[None], cache)
        self.seconds += time.perf_counter() - began
        if statistics:
            counters = Counters.from_statistics(statistics, cached_tokens=cache.length)
            self.counters = counters if self.counters is None else self.counters + counters
        return logits[0, :-1]
