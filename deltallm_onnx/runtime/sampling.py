"""Choose the next token from logits: greedy, or drawn with temperature, top-k and top-p."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError


class Sampler:
    """Draws tokens; the same seed draws the same tokens from the same logits.

    Args:
        temperature: logits are divided by it; 0 is greedy: the largest logit, the first of equals.
        top_k: only the k largest logits are drawn from; 0 = all.
        top_p: of those, only the smallest set whose probability reaches p; 1 = all.
        seed: of the random generator; None draws differently every time.

    Raises:
        DeltaLLMError: for a value outside its range.
    """

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int | None = None) -> None:
        if not (math.isfinite(temperature) and temperature >= 0):
            raise DeltaLLMError(f"temperature is {temperature}: give a finite number of at least 0 (0 is greedy).")
        if top_k < 0:
            raise DeltaLLMError(f"top-k is {top_k}: give a whole number of tokens, 0 for all.")
        if not 0 < top_p <= 1:
            raise DeltaLLMError(f"top-p is {top_p}: give a number above 0 and up to 1.")
        if seed is not None and seed < 0:
            raise DeltaLLMError(f"seed is {seed}: give a whole number of at least 0.")
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token.

        Args:
            logits: [V].

        Raises:
            DeltaLLMError: where a logit is NaN: the model's numbers have gone wrong.
        """
        if np.isnan(logits).any():
            raise DeltaLLMError(
                "The model gave a logit that is not a number: its weights may be damaged, so convert it again."
            )
        if self._temperature == 0:
            return int(np.argmax(logits))
        candidates, probabilities = self.distribution(logits)
        return int(self._random.choice(candidates, p=probabilities))

    def distribution(self, logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
        """The tokens that can be drawn, most probable first, and their probabilities (temperature above 0)."""
        order = np.argsort(-logits, kind="stable")
        if self._top_k:
            order = order[: self._top_k]
        # float64: choice() demands probabilities that sum to 1 within 1e-8.
        scaled = (logits[order].astype(np.float64) - float(logits[order[0]])) / self._temperature
        weights = np.exp(scaled)
        cumulative = np.cumsum(weights / weights.sum())
        # A token belongs to the set if what lies before it has not reached p.
        kept = int(np.searchsorted(cumulative, self._top_p, side="left")) + 1
        order, weights = order[:kept], weights[:kept]
        return order, weights / weights.sum()
