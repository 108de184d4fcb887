"""`sweep`: a model and a text in, a study in a database out, and the front it has found so far."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import optuna

from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.calibration.source import ModelFiles, opened_model
from deltallm_onnx.calibration.statistics import LayerStatistics, layer_statistics
from deltallm_onnx.calibration.text import BUNDLED, TextParts, read_text, split_text
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.environment import environment
from deltallm_onnx.runtime.tokenizer import TextTokenizer
from deltallm_onnx.sweep.chosen import as_calibration
from deltallm_onnx.sweep.measuring import TrialObjective
from deltallm_onnx.sweep.plans import Plans, study_curves
from deltallm_onnx.sweep.request import TEXT_WINDOWS, SweepRequest
from deltallm_onnx.sweep.result import SweepResult, TrialResult
from deltallm_onnx.sweep.space import holds_keys
from deltallm_onnx.sweep.storage import Storage
from deltallm_onnx.sweep.study import finished, join, make_or_join, quiet_optuna, sampler, work
from deltallm_onnx.sweep.timing import DecodeTimer, past_tokens

_Part = Literal["sensitivity", "search", "verification"]


class Progress(Protocol):
    """Receives what is going on."""

    def step(self, what: str) -> None:
        """A new step begins."""

    def note(self, sentence: str) -> None:
        """Something that a user waits for, and is told once."""

    def trials(self, done: int, wanted: int) -> None:
        """So many trials of the study are finished."""

    def trial(self, found: TrialResult) -> None:
        """A trial was finished here."""


class Silent:
    """Progress that nobody wants to see."""

    def step(self, what: str) -> None:
        """See `Progress`."""

    def note(self, sentence: str) -> None:
        """See `Progress`."""

    def trials(self, done: int, wanted: int) -> None:
        """See `Progress`."""

    def trial(self, found: TrialResult) -> None:
        """See `Progress`."""


def sweep(request: SweepRequest, *, progress: Progress | None = None) -> tuple[SweepResult, Calibration | None]:
    """Work on a study until it has enough finished trials, and say what it has found.

    A trial is in the storage as soon as it is finished: whatever ends this process, finished trials stay. Any number of
    processes with the same request may work on one study at once.

    Args:
        request: what is asked for.
        progress: receives what is going on.

    Returns:
        The study as it stands, and where the request has a budget for the best trial, that trial's plan, measured anew.

    Raises:
        DeltaLLMError: for a model, text or storage that cannot be used, a study that measures something else, and where
            no trial keeps the budget.
        KeyboardInterrupt: on Ctrl-C.
    """
    show = progress or Silent()
    storage = Storage(request.storage, grace=request.grace)
    sampler(request.sampler, 0)
    with opened_model(request.model, request.scratch, show.step) as files, quiet_optuna(), storage.told():
        if files.note:
            show.note(files.note)
        parts = _text(request, files)
        past = past_tokens(request.past, files.context) if request.timed else None
        identity = request.identity(model_sha256=files.sha256, text=parts.to_dict(), past=past)
        first = [request.space.parameters(candidate) for candidate in request.space.first()]
        opened = storage.open()
        if request.trials > 0:
            study, made = make_or_join(
                opened, request.study, identity=identity, objectives=request.objectives, first=first
            )
            study.sampler = sampler(request.sampler, request.seed if made else None)
        else:
            study = join(opened, request.study, identity=identity)
        running = _Running(request, files, parts, study, show)
        if len(finished(study)) < request.trials:
            running.work(past)
        result = SweepResult.of(study, storage.shown, request.objectives)
        return result, None if request.best is None else running.choose(result)


class _Running:
    """The steps on an opened study."""

    def __init__(
        self, request: SweepRequest, files: ModelFiles, parts: TextParts, study: optuna.Study, show: Progress
    ) -> None:
        self._request, self._files, self._parts, self._study, self._show = request, files, parts, study, show
        self._statistics: Sequence[LayerStatistics] | None = None

    def work(self, past: int | None) -> None:
        """Run trials until there are enough."""
        request, show = self._request, self._show
        plans = self._plans()
        timer = None
        if past is not None:
            timer = DecodeTimer(
                self._files.dense,
                self._parts.search.reshape(-1),
                past=past,
                context=self._files.context,
                folder=request.scratch,
                threads=request.threads,
            ).measure
        with self._meter("search") as meter:
            objective = TrialObjective(
                request.space,
                plans,
                meter,
                request.objectives,
                max_kl=request.max_kl,
                timer=timer,
                environment=environment(),
            )
            show.step(f"trials of study {request.study}")
            show.trials(len(finished(self._study)), request.trials)

            def told(trial: optuna.trial.FrozenTrial, done: int) -> None:
                show.trial(TrialResult.of(trial))
                show.trials(done, request.trials)

            work(self._study, objective, trials=request.trials, timeout=request.timeout, on_trial=told)

    def choose(self, result: SweepResult) -> Calibration:
        """The plan of the trial that serves the request's budget best."""
        budget = self._request.best
        if budget is None:
            raise DeltaLLMError("There is no budget to choose a trial by: give --best.")
        trial = result.keeping(budget)
        plans = self._plans()
        with self._meter("search", "verification") as meter:
            self._show.step(f"verifying trial {trial.number}")
            return as_calibration(
                result,
                trial,
                budget,
                space=self._request.space,
                plans=plans,
                meter=meter,
                parts=self._parts,
                model=self._files.to_dict(),
                seed=self._request.seed,
            )

    def _plans(self) -> Plans:
        space, show = self._request.space, self._show
        if self._statistics is None:
            show.step("statistics of queries and keys")
            self._statistics = layer_statistics(
                self._files.dense, self._parts.sensitivity, sinks=max(space.sinks), threads=self._request.threads
            )
        with contextlib.ExitStack() as stack:

            def meter() -> ModelMeter:
                show.note("before the first trial: measuring what single heads cost, once per study")
                opened = stack.enter_context(self._meter("sensitivity"))
                show.step("what single heads cost")
                return opened

            curves = study_curves(self._study, space, self._statistics, meter, effort=self._request.effort)
        return Plans(space, self._statistics, curves)

    @contextlib.contextmanager
    def _meter(self, *wanted: _Part) -> Iterator[ModelMeter]:
        """A meter whose dense predictions are there for these parts alone: they take much room."""
        unwanted = {
            part: getattr(self._parts, part)[:0]
            for part in ("sensitivity", "search", "verification")
            if part not in wanted
        }
        parts = dataclasses.replace(self._parts, **unwanted)
        meter = ModelMeter(
            self._files.dense,
            self._files.sha256,
            parts,
            Journal(None),
            folder=self._request.scratch,
            threads=self._request.threads,
        )
        self._show.step("reading the text with the dense model")
        try:
            meter.open(lambda _: None)
            yield meter
        finally:
            meter.close()


def _text(request: SweepRequest, files: ModelFiles) -> TextParts:
    corpus = request.corpus
    texts: Sequence[Path] = corpus.files or (BUNDLED,)
    parts = split_text(
        read_text(texts, text_key=corpus.text_key),
        TextTokenizer(files.dense.parent),
        name=", ".join(str(file) for file in corpus.files) or "the bundled text",
        window_tokens=corpus.window_tokens,
        context=files.context,
        windows=corpus.windows or TEXT_WINDOWS,
    )
    window, sinks, tokens = max(request.space.windows), max(request.space.sinks), parts.search.shape[1]
    if not holds_keys(window, sinks, tokens):
        raise DeltaLLMError(
            f"The text is read in windows of {tokens} tokens, and a window of {window} with {sinks} sinks keeps "
            f"{window + sinks} of them exact, so no key would ever be held: give a smaller --window."
        )
    return parts


__all__ = ["Progress", "Silent", "SweepRequest", "SweepResult", "sweep"]
