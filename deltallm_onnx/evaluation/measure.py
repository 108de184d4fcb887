"""Everything that can be measured of a model on a text, beside its dense form or alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.evaluation.notes import notes_on
from deltallm_onnx.evaluation.quality import Quality, by_position
from deltallm_onnx.evaluation.reading import Mode, Reader, tokens_per_call
from deltallm_onnx.evaluation.result import Evaluation, cache_figures
from deltallm_onnx.evaluation.retrieval import Sample
from deltallm_onnx.evaluation.retrieval_score import retrieve
from deltallm_onnx.evaluation.speed import STEPS, WARM_UP_STEPS, Speed, decode_speed
from deltallm_onnx.evaluation.trial import Trial
from deltallm_onnx.runtime.model import DecoderModel

#: Told what is under way, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]


def _silent(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


def evaluate(
    model: Path,
    baseline: Path | None,
    windows: npt.NDArray[np.int64],
    *,
    mode: Mode = "prefill+decode",
    samples: Sequence[Sample] = (),
    speed: bool = True,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress = _silent,
) -> Evaluation:
    """Measure quality, counters, retrieval and decode speed.

    Both models are open at once, and windows are read one by one. Log-probabilities are float64.

    Args:
        model: the .onnx file that is judged, rewritten or dense.
        baseline: the dense .onnx file that its predictions are held against; None measures the model alone.
        windows: token ids [N, S], S ≥ 3; of each, S − 1 predictions are scored, in mode "decode" those of the second
            half.
        mode: what queries read, see `Mode`.
        samples: contexts of `repeated_sequences` and `passkeys`.
        speed: whether to time decode steps, of the files as they are.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        seed: of the bootstrap.
        progress: told how far it is.

    Raises:
        DeltaLLMError: for a file this runtime cannot run, different vocabularies, windows too short to score, and
            where a call fails.
    """
    if mode not in get_args(Mode):
        raise DeltaLLMError(f"mode is {mode!r}: choose one of {', '.join(get_args(Mode))}.")
    N, S = windows.shape
    if N < 1 or S < 3:
        raise DeltaLLMError(f"{N} windows of {S} tokens score nothing: use at least 1 of at least 3 tokens.")
    if speed and S < WARM_UP_STEPS + 2:
        raise DeltaLLMError(f"Windows of {S} tokens have no room for decode steps: use longer ones, or --no-speed.")
    progress("Opening", 0, 1)
    reader = Reader(model, mode, threads=threads)
    beside = None if baseline is None else Reader(baseline, mode, threads=threads)
    trial = Trial(reader, beside)
    prompt = S // 2 if mode == "decode" else 0
    results = []
    for number, window in enumerate(windows):
        progress("Reading windows", number, N)
        results.append(trial.read(window, prompt=prompt))
    seconds = reader.seconds, None if beside is None else beside.seconds
    done = itertools.count(1)
    retrieved = retrieve(trial, samples, seed=seed, advance=lambda: progress("Retrieving", next(done), len(samples)))
    predictions = [result.predictions for result in results]
    evaluation = Evaluation(
        model=str(model),
        baseline=None if baseline is None else str(baseline),
        mode=mode,
        windows=N,
        window_tokens=S,
        prompt_tokens=prompt,
        quality=Quality.of(predictions, seed),
        positions=tuple(by_position(predictions, prompt + 1, seed)),
        cache=cache_figures([result.use for result in results], S, reader.signature.layers),
        baseline_cache=None
        if beside is None
        else cache_figures([r.baseline_use for r in results if r.baseline_use], S, beside.signature.layers),
        retrieval=tuple(retrieved),
        seconds=seconds[0],
        baseline_seconds=seconds[1],
        threads=threads,
        seed=seed,
        notes=notes_on(trial, results, retrieved, S),
    )
    chunk = tokens_per_call(reader.vocabulary)
    del trial, reader, beside  # before the files are opened again
    if not speed:
        return evaluation
    progress("Measuring speed", 0, 1)
    speeds = _speeds(model, baseline, windows[0], threads, chunk)
    return dataclasses.replace(evaluation, speed=speeds["model"], baseline_speed=speeds.get("baseline"))


def _speeds(
    model: Path, baseline: Path | None, window: npt.NDArray[np.int64], threads: int | None, chunk: int
) -> dict[str, Speed]:
    steps = min(STEPS, (len(window) - WARM_UP_STEPS) // 2)
    paths = {"model": model, "baseline": baseline}
    models = {name: DecoderModel(path, threads=threads) for name, path in paths.items() if path is not None}
    return decode_speed(models, window, steps, chunk=chunk)
