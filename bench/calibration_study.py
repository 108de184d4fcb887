"""What calibrated and uniform thresholds cost and give on held-out text, for bench/calibration.py."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx import DeltaConfig
from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.api import Corpus, calibrate_files
from deltallm_onnx.calibration.calibrate import Silent
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.request import request_for
from deltallm_onnx.calibration.result import Calibration, Reached
from deltallm_onnx.calibration.rules import find_rule, layer_plan
from deltallm_onnx.calibration.sensitivity import unit
from deltallm_onnx.calibration.source import ModelFiles
from deltallm_onnx.calibration.statistics import LayerStatistics, layer_statistics
from deltallm_onnx.calibration.text import TextParts, read_text
from deltallm_onnx.config import CacheFormat, Granularity
from deltallm_onnx.evaluation import text_windows
from deltallm_onnx.runtime import TextTokenizer

#: One number for all heads: the rules that it is tried with, and where. 1 is the median head's usual change of a key.
UNIFORM_RULES: dict[Granularity, tuple[str, ...]] = {
    "row": ("relative", "absolute", "query"),
    "element": ("uniform", "query"),
}
UNIFORM_SCALES: dict[Granularity, tuple[float, ...]] = {
    "row": (0.35, 0.5, 0.65, 0.8, 0.95, 1.1, 1.3, 1.55, 1.9),
    "element": (0.12, 0.2, 0.35, 0.6, 0.9, 1.3, 1.8, 2.5, 3.4, 5.0),
}
#: Windows of calibration text behind the statistics of uniform rules.
_STATISTICS_WINDOWS = 4
_PV_DENSE, _PV_SKIPPED = 4, 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is fixed in all measurements.

    Attributes:
        model: Hugging Face directory.
        text: to calibrate on.
        held_out: text that nothing is chosen by.
        window: newest tokens that stay exact.
        sinks: first tokens that do.
        tokens: per window of text.
        windows: of held-out text.
        calibration_windows: of the calibration text, all parts together; None takes a full calibration's.
        rules: of each granularity, that a calibration may choose from; without an entry its effort decides.
        threads: intra-op threads.
    """

    model: Path
    text: Path
    held_out: Path
    window: int
    sinks: int
    tokens: int
    windows: int
    calibration_windows: int | None
    rules: Mapping[str, tuple[str, ...]]
    threads: int

    def config(self, granularity: Granularity, cache_format: CacheFormat = "int8") -> DeltaConfig:
        """The global settings of a plan."""
        return DeltaConfig(
            window=self.window,
            sinks=self.sinks,
            granularity=granularity,
            cache_format=cache_format,
            prefill="delta",
        )


class _Count(Silent):
    """Counts windows of text."""

    windows = 0

    def read(self, windows: int) -> None:
        self.windows += windows


@dataclasses.dataclass(frozen=True)
class Study:
    """A model under one setting.

    Attributes:
        setting: what is fixed.
        files: the dense model.
        journal: of measurements; what is in it is not measured again, and curves serve every budget.
        scratch: folder for temporary files.
    """

    setting: Setting
    files: ModelFiles
    journal: Journal
    scratch: Path

    def calibrated(self, granularity: Granularity, budget: str) -> tuple[Calibration, int]:
        """The product's own calibration, with the window of the setting and without skipped values.

        Args:
            granularity: of the result.
            budget: as behind --budget.

        Returns:
            The result, and the windows of text that were read for it, those found in the journal too.

        Raises:
            DeltaLLMError: where no plan keeps the budget.
        """
        setting = self.setting
        request = request_for(
            budget,
            setting.config(granularity),
            windows=(setting.window,),
            v_skip=0.0,
            rules=setting.rules.get(granularity),
            threads=setting.threads,
        )
        corpus = Corpus((setting.text,), window_tokens=setting.tokens, windows=setting.calibration_windows)
        count = _Count()
        found = calibrate_files(self.files, request, corpus, journal=self.journal, scratch=self.scratch, progress=count)
        return found, count.windows

    @contextlib.contextmanager
    def held_out(self, tokens: int, windows: int) -> Iterator[HeldOut]:
        """Held-out text, read by the dense model, while the block runs.

        Args:
            tokens: per window; the windows are spread evenly over the text.
            windows: of the text.

        Raises:
            DeltaLLMError: where the text is too short.
        """
        cut = windows_of(self.files.dense.parent, self.setting.held_out, tokens, windows)
        digest = hashlib.sha256(read_text([self.setting.held_out]).encode()).hexdigest()
        parts = TextParts(cut[:1], cut[:1], cut, digest, self.setting.held_out.name)
        meter = ModelMeter(
            self.files.dense,
            self.files.sha256,
            parts,
            self.journal,
            folder=self.scratch,
            threads=self.setting.threads,
        )
        try:
            meter.open(lambda _: None)
            yield HeldOut(self, parts, meter)
        finally:
            meter.close()

    def layer_statistics(self) -> list[LayerStatistics]:
        """Of the dense model on calibration text."""
        setting = self.setting
        windows = windows_of(self.files.dense.parent, setting.text, setting.tokens, _STATISTICS_WINDOWS)
        return layer_statistics(self.files.dense, windows, sinks=setting.sinks, threads=setting.threads)


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A model's numbers on windows of held-out text.

    Attributes:
        study: of the model.
        parts: the windows, as the part for verification.
        meter: measures on them.
    """

    study: Study
    parts: TextParts
    meter: ModelMeter

    def reached(self, config: DeltaConfig, plan: AttentionPlan) -> dict[str, Any]:
        """Quality and counters of a plan, as in `Reached.to_dict`, and the share of values left out or shared."""
        measured = self.meter.measure("verification", config, plan)
        counts = sum(layer.sum(axis=0) for layer in measured.statistics)
        return {
            **Reached(measured, self.meter.dense("verification"), seed=0).to_dict(),
            "values_skipped": float(counts[_PV_SKIPPED] / counts[_PV_DENSE]),
        }

    @property
    def perplexity(self) -> float:
        """Of the dense model."""
        return self.meter.dense("verification").perplexity


def windows_of(folder: Path, text: Path, tokens: int, count: int) -> npt.NDArray[np.int64]:
    """Windows of a text, int64 [count, tokens], spread evenly over it; each begins as a text does.

    Args:
        folder: with tokenizer.json.
        text: a file.
        tokens: per window.
        count: windows.

    Raises:
        DeltaLLMError: where the text is too short.
    """
    tokenizer = TextTokenizer(folder)
    begin = tokenizer.encode("")[:1]
    ids = tokenizer.encode(read_text([text]))
    return text_windows(ids[len(begin) :], tokens, count, begin=begin)


def uniform_thresholds(
    held_out: HeldOut, statistics: Sequence[LayerStatistics], granularity: Granularity
) -> Iterator[dict[str, Any]]:
    """One number for all heads and layers, by every rule and at several scales."""
    for name in UNIFORM_RULES[granularity]:
        rule = find_rule(granularity, name)
        usual = float(np.median(np.concatenate([unit(rule, layer) for layer in statistics])))
        for scale in UNIFORM_SCALES[granularity]:
            plan = AttentionPlan(tuple(layer_plan(rule, layer, scale * usual) for layer in statistics))
            reached = held_out.reached(held_out.study.setting.config(granularity), plan)
            yield {"granularity": granularity, "rule": name, "threshold": scale * usual, **reached}


def skipped_values(
    held_out: HeldOut, statistics: Sequence[LayerStatistics], v_skips: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Values left out while every key is exact."""
    rule, config = find_rule("element", "uniform"), held_out.study.setting.config("element", "float32")
    for v_skip in v_skips:
        plan = AttentionPlan(tuple(layer_plan(rule, layer, 0.0, v_skip=v_skip) for layer in statistics))
        yield {"v_skip": v_skip, **held_out.reached(config, plan)}


def window_alone(setting: Setting, windows: npt.NDArray[np.int64], dense_perplexity: float) -> dict[str, Any]:
    """The model that sees sinks and window and nothing else: what far context is worth.

    Args:
        setting: model, window and sinks.
        windows: token ids [N, S].
        dense_perplexity: on the same windows.
    """
    import torch  # noqa: PLC0415  # only this needs it
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(
        setting.model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    ).eval()
    S = windows.shape[1]
    i, j = torch.arange(S)[:, None], torch.arange(S)
    visible = (j <= i) & ((j > i - setting.window) | (j < setting.sinks))
    losses = []
    with torch.inference_mode():
        for window in torch.from_numpy(windows):
            logits = model(window[None], attention_mask=visible[None, None], use_cache=False).logits[0, :-1]
            losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    perplexity = math.exp(float(np.mean(losses)))
    return {"perplexity": perplexity, "perplexity_increase": perplexity / dense_perplexity - 1}
