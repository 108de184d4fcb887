"""What a task harness asks of a model, in token ids: the likelihood of a continuation, and greedy text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import numpy.typing as npt

from deltallm_onnx.counters import Counters
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation import score
from deltallm_onnx.runtime import DecoderModel, Generation, KVCache, generate


class TokenModel:
    """A model that scores and continues texts of token ids, one at a time, and counts what that took.

    Args:
        model: an open model.
        stepwise: read a context by one call and its continuation token by token, as generation does; the context of
            the latest text is kept, so that its other continuations need no second call. Otherwise each text is read by
            one call.
        max_length: tokens of a call's cache that the model was made for; longer texts lose their first tokens.
        generates: whether `generate` is allowed.
    """

    def __init__(self, model: DecoderModel, *, stepwise: bool, max_length: int, generates: bool = True) -> None:
        self.max_length = max_length
        self._model = model
        self._stepwise = stepwise
        self._generates = generates
        self._context: _Context | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds = 0.0
        self.tokens = 0
        self.counters: Counters | None = None

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """How likely a continuation is.

        Args:
            context: at least one token id; its first tokens are dropped where both do not fit in `max_length`.
            continuation: at least one token id.

        Returns:
            The log-probability of the continuation in nats, and whether greedy decoding would say it.

        Raises:
            DeltaLLMError: for a continuation longer than `max_length` or with tokens outside the vocabulary, where a
                call fails, and where the model gives NaN.
        """
        if not context or not continuation:
            raise DeltaLLMError("A context and a continuation of at least one token each are needed.")
        if len(continuation) > self.max_length:
            raise DeltaLLMError(
                f"A text to score has {len(continuation)} tokens, the model was made for {self.max_length}: "
                "leave out tasks with such texts."
            )
        # The last token is predicted, never read.
        tokens = [*context, *continuation][:-1][-self.max_length :]
        ahead = len(continuation) - 1
        if self._stepwise:
            logits = self._step_through(tokens[: len(tokens) - ahead], tokens[len(tokens) - ahead :])
        else:
            logits = self._call(tokens, self._model.new_cache(limit=len(tokens)))[-len(continuation) :]
        if max(continuation) >= logits.shape[-1]:
            raise DeltaLLMError(
                f"A text has the token {max(continuation)}, and {self._model.path} knows those below "
                f"{logits.shape[-1]}: give the model's own tokenizer."
            )
        found = score(logits, np.asarray(continuation, np.int64))
        if np.isnan(found.loss).any():
            # The harness would take the first choice as the best one.
            raise DeltaLLMError(
                f"{self._model.path} gives NaN for {np.isnan(found.loss).sum()} of {len(found.loss)} "
                "predictions: check its weights."
            )
        return -float(found.loss.sum()), bool(found.hit.all())

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        end_ids: AbstractSet[int] = frozenset(),
        until: Callable[[Sequence[int]], bool] | None = None,
    ) -> list[int]:
        """Continue a prompt greedily, as `runtime.generate` does; a long prompt loses its first tokens.

        Raises:
            DeltaLLMError: where this model is only for scoring, and where no room is left for a prompt.
        """
        if not self._generates:
            raise DeltaLLMError(
                "The task has text generated token by token, which is decoding: use another mode than prefill for it."
            )
        room = self.max_length - max_new_tokens
        if room < 1:
            raise DeltaLLMError(
                f"The task asks for up to {max_new_tokens} new tokens, the model was made for {self.max_length} in "
                "all: leave it out."
            )
        kept = prompt[-room:]
        result = generate(self._model, kept, max_new_tokens=max_new_tokens, end_ids=end_ids, until=until)
        self.seconds += result.prefill_seconds + result.decode_seconds
        self.tokens += result.cached_tokens
        self._count(result)
        return result.tokens

    def _step_through(self, context: list[int], further: list[int]) -> npt.NDArray[np.float32]:
        """Logits [1 + len(further), V] behind the context and behind every further token."""
        if self._context is None or self._context.tokens != context:
            # Not limited to this continuation: others of the same context may be longer.
            cache = self._model.new_cache(limit=self.max_length)
            self._context = _Context(context, cache, self._call(context, cache)[-1:])
        rows = [self._context.logits]
        # Decoding changes rows that leave the window, so the context itself is never continued.
        cache = self._context.cache.copy() if further else self._context.cache
        rows += [self._call([token], cache) for token in further]
        return np.concatenate(rows)

    def _call(self, tokens: Sequence[int], cache: KVCache) -> npt.NDArray[np.float32]:
        """Logits [len(tokens), V] behind every token."""
        before = cache.length
        began = time.perf_counter()
        logits, statistics = self._model.step(np.array([tokens], np.int64), cache)
        self.seconds += time.perf_counter() - began
        self.tokens += len(tokens)
        if statistics:
            decoded = 1 if before and len(tokens) == 1 else 0
            self._add(Counters.from_statistics(statistics, cached_tokens=cache.length, decoded_tokens=decoded))
        rows: npt.NDArray[np.float32] = logits[0]
        return rows

    def _count(self, result: Generation) -> None:
        if result.counters is not None:
            self._add(result.counters)

    def _add(self, counters: Counters) -> None:
        self.counters = counters if self.counters is None else self.counters + counters


class _Context:
    """A context that was read.

    Attributes:
        tokens: its ids.
        cache: what it left.
        logits: float32 [1, V] behind its last token.
    """

    def __init__(self, tokens: list[int], cache: KVCache, logits: npt.NDArray[np.float32]) -> None:
        self.tokens = tokens
        self.cache = cache
        self.logits = logits
