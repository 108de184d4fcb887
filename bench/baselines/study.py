"""Measure everything: tune on one text, compare on another, and hold ours against the operator."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from bench.baselines.budgets import COSTS, FAMILIES, PLAIN, RATIOS, best
from bench.baselines.delta import DeltaRows
from bench.baselines.journal import Journal, key
from bench.baselines.measure import Retrieval, Text, measure
from bench.baselines.method import Method
from bench.baselines.model import TorchModel, query_rms
from bench.baselines.operator import decode
from bench.baselines.plain import Plain
from bench.baselines.settings import (
    CALIBRATED_KL,
    CALIBRATED_WINDOW,
    SINKS,
    Setting,
    baselines,
    calibrated,
    one_threshold,
)
from bench.baselines.storage import FLOAT32
from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.api import Corpus, calibrate_files
from deltallm_onnx.calibration.journal import Journal as CalibrationJournal
from deltallm_onnx.calibration.request import request_for
from deltallm_onnx.calibration.source import ModelFiles
from deltallm_onnx.evaluation import repeated_sequences, text_windows
from deltallm_onnx.export import export_model
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.runtime import DecoderModel, TextTokenizer
from deltallm_onnx.runtime.environment import environment

Array = npt.NDArray[Any]
Result = dict[str, Any]

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo"
TUNING_TEXT, TEXT = "calibration.txt", "validation.txt"
TOKENS, TUNING_WINDOWS, CALIBRATION_WINDOWS = 1024, 2, 20
#: Of the repeated sequence, and how often it is placed at each.
DEPTHS, SAMPLES = (0.7, 0.9), 4
#: Held-out windows that the operator decodes.
OPERATOR_WINDOWS = 2
#: What is kept of a measurement on the tuning text.
_TUNED = ("kl", *COSTS)


class Study:
    """The model and its texts, in one process.

    Args:
        windows: of the held-out text.
    """

    def __init__(self, windows: int) -> None:
        # One thread: the sums are in the same order every time.
        torch.set_num_threads(1)
        self.model = TorchModel(MODEL)
        tokenizer = TextTokenizer(MODEL)
        self.begin = tokenizer.encode("")[:1]
        self.held_out = self._cut(tokenizer, TEXT, windows)
        self._tuning = self._cut(tokenizer, TUNING_TEXT, TUNING_WINDOWS)
        self.weights = query_rms(self.model, self._tuning)

    def _cut(self, tokenizer: TextTokenizer, name: str, count: int) -> Array:
        ids = tokenizer.encode((MODEL / name).read_text(encoding="utf-8"))
        return text_windows(ids[len(self.begin) :], TOKENS, count, begin=self.begin)

    @functools.cached_property
    def tuning(self) -> Text:
        """What knobs are chosen on."""
        return Text(self.model, self._tuning)

    @functools.cached_property
    def text(self) -> Text:
        """What methods are compared on."""
        return Text(self.model, self.held_out)

    @functools.cached_property
    def retrieval(self) -> Retrieval:
        """Random tokens in the held-out text that come again at its end."""
        samples = repeated_sequences(self.held_out, begin=len(self.begin), samples=SAMPLES, depths=DEPTHS)
        return Retrieval(self.model, samples)

    def tune(self, method: Method) -> Result:
        """Divergence and costs on the tuning text."""
        found = self.tuning.measure(method)
        return {name: found[name] for name in _TUNED}

    def compare(self, method: Method) -> Result:
        """Everything on the held-out text."""
        began = time.perf_counter()
        found = {**self.text.measure(method), "repeated_sequence_loss": self.retrieval.measure(method)}
        return {**found, "seconds": round(time.perf_counter() - began, 1)}


@functools.cache
def study_of(windows: int) -> Study:
    """The study of this process."""
    return Study(windows)


def tune(windows: int, setting: Setting) -> Result:
    """One setting on the tuning text, in any process."""
    return {**setting.to_dict(), **study_of(windows).tune(setting.method)}


def compare(windows: int, setting: Setting) -> Result:
    """One setting on the held-out text, in any process."""
    return {**setting.to_dict(), **study_of(windows).compare(setting.method)}


def chosen(tuned: Sequence[Mapping[str, Any]]) -> list[int]:
    """The settings that are compared: of each family the nearest to the dense model within every budget."""
    found = set()
    for cost in COSTS:
        dense = next(one[cost] for one in tuned if one["family"] == PLAIN and one["knobs"]["rows"] == "float32")
        for ratio in RATIOS:
            found |= {at for family in FAMILIES if (at := best(tuned, family, cost, dense / ratio)) is not None}
    return sorted(found)


def take(windows: int, workers: int, journal: Journal, say: Callable[[str], None]) -> dict[str, Any]:
    """The record.

    Args:
        windows: of the held-out text.
        workers: processes.
        journal: of what was measured before, on the same model and texts.
        say: receives what is going on.
    """
    study = study_of(windows)
    own = settings_of(study)
    grid = [*baselines(), *one_threshold(study.weights, len(study.weights[0]))]
    with tempfile.TemporaryDirectory() as folder, _pool(workers) as pool:

        def measured(measure: Callable[[int, Setting], Result], settings: Sequence[Setting]) -> list[Result]:
            keys = [key(measure.__name__, own, setting.to_dict()) for setting in settings]
            return journal.map(pool, functools.partial(measure, windows), keys, settings)

        say(f"{len(grid)} settings on {TUNING_TEXT}")
        tuned = measured(tune, grid)
        say("calibrating")
        dense = export_model(MODEL, Path(folder) / "dense.onnx").path
        for name in ("tokenizer.json", "config.json"):
            (dense.parent / name).write_bytes((MODEL / name).read_bytes())
        found = journal.find(key("calibrate", own, CALIBRATED_KL), lambda: calibrations(dense))
        plans = [(kl, AttentionPlan.from_dict(plan)) for kl, plan in zip(CALIBRATED_KL, found, strict=True)]
        ours = [calibrated(plan, cache_format, kl) for kl, plan in plans for cache_format in PACKED_FORMATS]
        tuned += measured(tune, ours)
        grid += ours
        compared = chosen(tuned)
        say(f"{len(compared)} settings on {TEXT}")
        results = measured(compare, [grid[at] for at in compared])
        say("the operator")
        operators = [
            journal.find(key("operator", own, setting.to_dict()), functools.partial(operator, study, dense, setting))
            for setting in ours
        ]
    return {
        "environment": environment(),
        "settings": own,
        "dense": study.compare(Plain(FLOAT32)),
        "tuned": tuned,
        "results": [{"tuned": at, **result} for at, result in zip(compared, results, strict=True)],
        "operator": operators,
    }


def settings_of(study: Study) -> dict[str, Any]:
    """What was measured, for the record."""
    files = ("model.safetensors", TUNING_TEXT, TEXT)
    config = study.model.model.config
    return {
        "model": "models/demo",
        "sha256": {name: hashlib.sha256((MODEL / name).read_bytes()).hexdigest() for name in files},
        "layers": study.model.layers,
        "heads": [config.num_attention_heads, config.num_key_value_heads],
        "head_size": config.head_dim,
        "tokens": TOKENS,
        "windows": len(study.held_out),
        "tuning_windows": TUNING_WINDOWS,
        "sinks": SINKS,
        "samples": SAMPLES,
    }


def calibrations(dense: Path) -> list[Result]:
    """Plans that `calibrate` finds on the tuning text with an int8 cache, for every divergence of CALIBRATED_KL."""
    corpus = Corpus(files=(MODEL / TUNING_TEXT,), window_tokens=TOKENS, windows=CALIBRATION_WINDOWS)
    config = DeltaConfig(window=CALIBRATED_WINDOW, sinks=SINKS)
    requests = [request_for(f"kl={kl:g}", config, v_skip=0.0, effort="short", threads=1) for kl in CALIBRATED_KL]
    files = ModelFiles.of(dense, "models/demo")
    # One journal: what single heads cost is measured once for all budgets.
    measurements = CalibrationJournal(None)
    return [
        calibrate_files(files, request, corpus, journal=measurements, scratch=dense.parent).plan.to_dict()
        for request in requests
    ]


def operator(study: Study, dense: Path, setting: Setting) -> Result:
    """The rewritten model decoding some of the held-out text, and the oracle on the same."""
    ours = setting.method
    if not isinstance(ours, DeltaRows):
        raise TypeError(setting.family)
    config = DeltaConfig(window=ours.window, sinks=ours.sinks, cache_format=ours.cache_format)
    written = rewrite(dense, dense.with_name("rewritten.onnx"), config, plan=ours.plan, statistics=True)
    text = Text(study.model, study.held_out[:OPERATOR_WINDOWS])
    oracle = text.measure(ours)
    began = time.perf_counter()
    real = measure(decode(DecoderModel(written.path, threads=1), text.windows), text, study.model.layers)
    seconds = round(time.perf_counter() - began, 1)
    return {**setting.to_dict(), "oracle": oracle, "operator": {**real, "seconds": seconds}}


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Forked processes cannot use torch's threads, were there any before.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool
