"""How far a rewritten model is from its dense one on real text: perplexity and Kullback-Leibler divergence.

Every window is read by one call. Held keys are active in such a call only where the model was written with
`prefill = "delta"`; by the chunk property (docs/spec.md section 3) its outputs are those of token-by-token decoding.
With `prefill = "exact"` one call over a window reads everything exactly and would measure nothing.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
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


def text_windows(
    token_ids: Sequence[int], length: int, count: int, *, begin: Sequence[int] = ()
) -> npt.NDArray[np.int64]:
    """Cut windows that do not overlap, spread evenly over a text.

    Args:
        token_ids: the text.
        length: tokens per window, `begin` included; at least 1 more than that, and ≥ 2.
        count: windows, ≥ 1.
        begin: tokens put before every window, such as the one that begins a text.

    Returns:
        int64 [count, length].

    Raises:
        DeltaLLMError: where the text is too short.
    """
    own = length - len(begin)
    if length < 2 or own < 1 or count < 1:
        raise DeltaLLMError(f"{count} windows of {length} tokens score nothing: use at least 1 of at least 2 tokens.")
    if len(token_ids) < own * count:
        raise DeltaLLMError(
            f"The text has {len(token_ids)} tokens, {count} windows of {length} need {own * count}: "
            "give a longer text or fewer, shorter windows."
        )
    stride = len(token_ids) // count
    return np.array([[*begin, *token_ids[i * stride : i * stride + own]] for i in range(count)], np.int64)


def compare(reference: DecoderModel, model: DecoderModel, windows: npt.NDArray[np.int64]) -> tuple[Score, Score]:
    """Score two models on the same windows, each read by one call from an empty cache.

    Args:
        reference: the dense model.
        model: the rewritten one.
        windows: token ids [N, S]; of each, S − 1 predictions are scored.

    Returns:
        The scores of `reference` and of `model`.

    Raises:
        DeltaLLMError: where a call fails, and where the vocabularies differ.
    """
    tallies = (_Tally(), _Tally())
    for window in windows:
        log_p = tallies[0].read(reference, window)
        log_q = tallies[1].read(model, window)
        if log_p.shape != log_q.shape:
            raise DeltaLLMError(
                f"{reference.path} has {log_p.shape[1]} tokens in its vocabulary and {model.path} {log_q.shape[1]}: "
                "compare a model with its own dense form."
            )
        tallies[1].divergence += float(np.sum(np.exp(log_p) * (log_p - log_q)))
    return tallies[0].score(), tallies[1].score()


class _Tally:
    """Sums over windows."""

    def __init__(self) -> None:
        self.negative_log_likelihood = 0.0
        self.divergence = 0.0
        self._tokens = 0
        self._seconds = 0.0
        self._counters: Counters | None = None

    def read(self, model: DecoderModel, window: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Run one window and return the log-probabilities [S − 1, V] of its predictions."""
        cache = model.new_cache(limit=len(window))
        began = time.perf_counter()
        logits, statistics = model.step(window[None], cache)
        self._seconds += time.perf_counter() - began
        if statistics:
            counters = Counters.from_statistics(statistics, cached_tokens=cache.length)
            self._counters = counters if self._counters is None else self._counters + counters
        log_probabilities = _log_softmax(logits[0, :-1])
        targets = window[1:]
        self.negative_log_likelihood -= float(log_probabilities[np.arange(len(targets)), targets].sum())
        self._tokens += len(targets)
        return log_probabilities

    def score(self) -> Score:
        return Score(
            tokens=self._tokens,
            perplexity=math.exp(self.negative_log_likelihood / self._tokens),
            kl_to_reference=self.divergence / self._tokens,
            seconds=self._seconds,
            counters=self._counters,
        )


def _log_softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
