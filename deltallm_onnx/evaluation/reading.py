"""How a window of tokens is read: which calls a mode makes, and by which form of the model."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from deltallm_onnx.evaluation.forms import hold_in_prompts, prompt_settings, read_as_decoding, read_prompts_exactly
from deltallm_onnx.runtime.cache import KVCache
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.weights.quantised import quantised_operators

Array = npt.NDArray[np.int64]

#: In which calls queries read held keys, whatever the file says of its prompts. "prefill+decode": in all; reading a
#: window is then decoding it token by token. "prefill": in prompts; every window is one. "decode": not in prompts; a
#: part of every window is a prompt, and the predictions behind it are scored.
Mode = Literal["prefill+decode", "prefill", "decode"]

#: Logits of one call that decodes take no more than this, as float32.
LOGITS_BYTES = 128 << 20

#: What makes the form of a model that reads prompts, by mode.
PROMPT_FORMS = {"prefill+decode": read_as_decoding, "prefill": hold_in_prompts, "decode": read_prompts_exactly}


@dataclasses.dataclass(frozen=True)
class Call:
    """One call over the tokens begin … end − 1 of a window."""

    begin: int
    end: int
    decodes: bool


def calls(mode: Mode, tokens: int, prompt: int, vocabulary: int) -> list[Call]:
    """The calls that read a window: those that make its predictions, and one decode step for the last token.

    Args:
        mode: which tokens come as a prompt.
        tokens: S of the window, ≥ 2.
        prompt: tokens of the prompt in mode "decode", 1 … S − 1.
        vocabulary: V; decoded tokens come in calls whose logits take at most LOGITS_BYTES.
    """
    last = tokens - 1
    first = {"prefill+decode": 0, "prefill": last, "decode": prompt}[mode]
    found = [Call(0, first, decodes=False)] if first else []
    size = tokens_per_call(vocabulary)
    found += [Call(begin, min(begin + size, last), decodes=True) for begin in range(first, last, size)]
    return [*found, Call(last, tokens, decodes=True)]


def tokens_per_call(vocabulary: int) -> int:
    """Tokens whose logits take at most LOGITS_BYTES, one at least."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


class Reader:
    """A model, dense or rewritten, opened for a mode.

    In mode "decode" a rewritten model is opened twice: prompts and what is decoded behind them are read by different
    forms of it.

    Args:
        path: the .onnx file.
        mode: how windows are read.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Attributes:
        path: as given.
        mode: as given.
        signature: of the model.
        quantised: operators that take quantised weights, see `quantised_operators`.
        seconds: wall time of all calls so far.
        vocabulary: V.

    Raises:
        DeltaLLMError: as `DecoderModel` does.
    """

    def __init__(self, path: Path, mode: Mode, *, threads: int | None = None) -> None:
        self.path = path
        self.mode = mode
        self.quantised = ""
        self._settings: frozenset[tuple[str, str]] = frozenset()
        self._prompting = self._decoding = DecoderModel(path, threads=threads, edit=self._edit)
        if mode == "decode" and self._settings:
            self._decoding = DecoderModel(path, threads=threads, edit=read_as_decoding)
        self.signature = self._decoding.signature
        self.seconds = 0.0
        logits, _ = self._decoding.step(np.zeros((1, 1), np.int64), self.new_cache(limit=1))
        self.vocabulary = int(logits.shape[-1])

    @property
    def rewritten(self) -> bool:
        """Whether the model has operators of ai.deltallm."""
        return self.signature.delta_nodes > 0

    @property
    def prompt_settings(self) -> frozenset[tuple[str, str]]:
        """Distinct pairs of prefill and prefill_compute, as the file has them."""
        return self._settings

    def new_cache(self, limit: int) -> KVCache:
        """An empty cache; both forms of the model read and write it."""
        return self._decoding.new_cache(limit=limit)

    def step(
        self, token_ids: Array, cache: KVCache, *, decodes: bool
    ) -> tuple[npt.NDArray[np.float32], list[npt.NDArray[np.int64]]]:
        """`DecoderModel.step` for one sequence [S]: logits float32 [S, V], and statistics of every layer."""
        model = self._decoding if decodes else self._prompting
        began = time.perf_counter()
        logits, statistics = model.step(token_ids[None], cache)
        self.seconds += time.perf_counter() - began
        return logits[0], statistics

    def _edit(self, model: onnx.ModelProto) -> None:
        self._settings = prompt_settings(model)
        self.quantised = quantised_operators(node.op_type for node in model.graph.node)
        PROMPT_FORMS[self.mode](model)
