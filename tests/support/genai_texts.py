"""One text in onnxruntime-genai, and the same calls in our own runtime, behind one face."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime_genai as og
from numpy.typing import NDArray
from support.genai_models import CONTEXT, VOCABULARY, configuration
from support.hf_reference import Scenario

from deltallm_onnx.runtime.model import DecoderModel

#: The models' end-of-text token; it is never chosen, so that every text gets as long as it is asked to be.
END = 2


def random_tokens(count: int, seed: int = 5) -> list[int]:
    """Words, no special tokens."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, VOCABULARY, count)]


class Text(Protocol):
    """Tokens behind each other on one cache."""

    @property
    def length(self) -> int:
        """How many tokens there are."""

    def append(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Run tokens behind those that are there, the last generated one included; logits [tokens, vocabulary]."""

    def generate(self, count: int) -> list[int]:
        """So many more tokens, the likeliest each; the last of them is chosen and not yet run."""

    def rewind(self, length: int) -> None:
        """Keep so many tokens."""


class GenaiText:
    """A text in onnxruntime-genai.

    Args:
        folder: with genai_config.json.
        max_length: tokens, prompt included; also the rows of shared caches.
        overlay: what the configuration says otherwise.
        may_end: the end token may be chosen.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_length: int = CONTEXT,
        overlay: dict[str, Any] | None = None,
        may_end: bool = False,
    ) -> None:
        config = og.Config(str(folder))
        # One thread: as OwnText, and the test's workers have a core each.
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
        if overlay:
            config.overlay(json.dumps(overlay))
        self._model = og.Model(config)
        parameters = og.GeneratorParams(self._model)
        # min_length keeps the end token from being chosen
        parameters.set_search_options(max_length=max_length, min_length=0 if may_end else max_length, do_sample=False)
        self._generator = og.Generator(self._model, parameters)
        self._unrun = False

    @property
    def tokens(self) -> list[int]:
        """All of them, prompt included."""
        return [int(token) for token in self._generator.get_sequence(0)]

    @property
    def length(self) -> int:
        """See Text."""
        return int(self._generator.token_count())

    def append(self, tokens: Sequence[int], *, run_last: bool = True) -> NDArray[np.float32]:
        """See Text.

        Args:
            tokens: at least one.
            run_last: False leaves the last generated token out of the cache, as onnxruntime-genai 0.18 does.
        """
        if self._unrun and run_last:
            self._generator.get_logits()
        self._generator.append_tokens(np.array(tokens, np.int32))
        self._unrun = False
        return np.array(self._generator.get_output("logits")[0], np.float32)

    def generate(self, count: int) -> list[int]:
        """See Text."""
        for _ in range(count):
            self._generator.generate_next_token()
        self._unrun = True
        return self.tokens[-count:]

    def cache_rows(self, layer: int) -> int:
        """Rows of a layer's key cache, in use or not."""
        return int(self._generator.get_input(f"past_key_values.{layer}.key").shape[2])

    def generate_to_end(self) -> None:
        """Generate until the end token comes, which is not kept."""
        while not self._generator.is_done():
            self._generator.generate_next_token()

    def rewind(self, length: int) -> None:
        """See Text."""
        self._generator.rewind_to(length)
        self._unrun = False


def scenario_error(folder: Path, scenario: Scenario) -> float:
    """The largest difference of a logit between onnxruntime-genai and what a scenario of one row expects."""
    text = GenaiText(folder)
    return max(float(np.abs(text.append(step.input_ids[0]) - step.logits[0]).max()) for step in scenario.steps)


def generate_batch(folder: Path, rows: Sequence[Sequence[int]], *, length: int, beams: int = 1) -> list[list[int]]:
    """Continue prompts of one length together.

    Args:
        folder: with genai_config.json.
        rows: token ids.
        length: of the texts, prompts included.
        beams: of the search.
    """
    model = og.Model(str(folder))
    parameters = og.GeneratorParams(model)
    settings = {"max_length": length, "min_length": length, "batch_size": len(rows), "num_beams": beams}
    parameters.set_search_options(do_sample=False, **settings)
    generator = og.Generator(model, parameters)
    generator.append_tokens(np.array(rows, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(row)] for row in range(len(rows))]


class OwnText:
    """The same calls in deltallm_onnx.runtime.

    Args:
        path: the .onnx file.
        max_length: tokens, prompt included.
    """

    def __init__(self, path: Path, *, max_length: int = CONTEXT) -> None:
        self._model = DecoderModel(path, threads=1)
        self._cache = self._model.new_cache(limit=max_length)
        self._logits = np.zeros((0, 0), np.float32)
        self._unrun: list[int] = []

    @property
    def length(self) -> int:
        """See Text."""
        return self._cache.length + len(self._unrun)

    def append(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See Text."""
        if self._unrun:
            self._run(self._unrun)
        self._unrun = []
        return self._run(tokens)

    def generate(self, count: int) -> list[int]:
        """See Text."""
        chosen = []
        for _ in range(count):
            if self._unrun:
                self._run(self._unrun)
            last = self._logits[-1].copy()
            last[END] = -np.inf
            chosen.append(int(last.argmax()))
            self._unrun = chosen[-1:]
        return chosen

    def rewind(self, length: int) -> None:
        """See Text."""
        self._cache._length = length
        self._unrun = []

    def _run(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        logits, _ = self._model.step(np.array([tokens], np.int64), self._cache)
        self._logits = logits[0]
        return self._logits


def both(folder: Path) -> Callable[[Callable[[Text], Any]], None]:
    """A function that does the same with a text in each runtime and compares what it gets, bit by bit."""
    texts = (GenaiText(folder), OwnText(folder / configuration(folder)["model"]["decoder"]["filename"]))

    def same(call: Callable[[Text], Any]) -> None:
        genai, own = (np.asarray(call(text)) for text in texts)
        np.testing.assert_array_equal(genai, own)

    return same
