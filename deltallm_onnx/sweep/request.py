"""What a sweep is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from deltallm_onnx.calibration.api import Corpus
from deltallm_onnx.calibration.budget import Budget
from deltallm_onnx.calibration.effort import find_effort
from deltallm_onnx.config import CacheFormat
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.sweep import space as spaces
from deltallm_onnx.sweep.objectives import TIME, Objective, find_objectives, rewards_elements, rewards_v_skip

#: Windows of text, of all parts together, where nothing is said.
TEXT_WINDOWS = 32
DEFAULT_STORAGE, DEFAULT_TRIALS, DEFAULT_GRACE = "sqlite:///sweep.db", 100, 60


@dataclasses.dataclass(frozen=True)
class SweepRequest:
    """What is asked for.

    Attributes:
        model: a dense .onnx file or a folder with one, tokenizer.json beside it; or a Hugging Face model.
        corpus: the text.
        study: name of the study.
        objectives: what it is for, quality first.
        space: what is searched.
        storage: URL of a database.
        trials: finished ones wanted, of all processes together; 0 measures nothing.
        timeout: seconds after which no further trial begins here.
        sampler: of `study.SAMPLERS`.
        seed: of the sampler, where this process makes the study, and of confidence intervals.
        max_kl: divergence that makes a trial infeasible, in nats per token.
        past: tokens in the cache of timed decode steps.
        effort: of the curves; see `calibration.effort`.
        grace: seconds of silence after which another process's trial is tried again.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.
        scratch: folder for temporary files.
        best: a budget; the plan of the trial that serves it best is wanted.
    """

    model: str
    corpus: Corpus
    study: str
    objectives: tuple[Objective, ...]
    space: spaces.Space
    storage: str = DEFAULT_STORAGE
    trials: int = DEFAULT_TRIALS
    timeout: float | None = None
    sampler: str = "tpe"
    seed: int = 0
    max_kl: float | None = None
    past: int | None = None
    effort: str = "short"
    grace: int = DEFAULT_GRACE
    threads: int | None = None
    scratch: Path = Path()
    best: Budget | None = None

    def __post_init__(self) -> None:
        find_effort(self.effort)
        if not self.study.strip():
            raise DeltaLLMError("The study has no name: give one with --study.")
        for name, least in (("trials", 0), ("seed", 0), ("past", 1), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DeltaLLMError(f"{name} is {value}: give a whole number of at least {least}.")
        if self.max_kl is not None and not 0 < self.max_kl < float("inf"):
            raise DeltaLLMError(f"max_kl is {self.max_kl:g}: give a number above 0, in nats per token.")
        if self.timeout is not None and not self.timeout > 0:
            raise DeltaLLMError(f"timeout is {self.timeout:g}: give a number of seconds above 0.")
        if self.past is not None and not self.timed:
            raise DeltaLLMError("past is only of use where decode time is an objective: give --time too.")

    @property
    def timed(self) -> bool:
        """Whether decode time is measured."""
        return any(objective.name == TIME for objective in self.objectives)

    def identity(self, *, model_sha256: str, text: dict[str, Any], past: int | None) -> dict[str, Any]:
        """All that the study's numbers depend on, JSON-ready.

        Args:
            model_sha256: of the dense model.
            text: as `TextParts.to_dict` says it.
            past: tokens in the cache of timed steps.
        """
        return {
            "model sha256": model_sha256,
            "text sha256": text["sha256"],
            "window_tokens": text["window_tokens"],
            "windows of text": [f"{part} {count}" for part, count in text["windows"].items()],
            "objectives": [objective.name for objective in self.objectives],
            **{f"choices of {name}": value for name, value in self.space.to_dict().items()},
            "max_kl": self.max_kl,
            "past": past,
            "effort": self.effort,
        }


def space_for(
    objectives: Sequence[Objective],
    *,
    granularities: Sequence[str] = (),
    rules: Sequence[str] = (),
    windows: Sequence[int] = (),
    sinks: Sequence[int] = (),
    v_skips: Sequence[float] = (),
    cache_formats: Sequence[str] = (),
    max_kl: float | None = None,
    text_tokens: int | None = None,
) -> spaces.Space:
    """The space behind options of the command line: what no objective rewards is not searched unless it is named.

    Args:
        objectives: of the study.
        granularities: to try; empty tries rows, and single channels too where an objective rewards them.
        rules: names; empty takes the one that won on the models tried.
        windows: tokens; empty takes those of `space.WINDOWS` that leave keys to hold in windows of text.
        sinks: tokens; empty takes `space.SINKS`.
        v_skips: ε; empty takes `space.V_SKIPS` where an objective rewards it.
        cache_formats: empty takes all.
        max_kl: see `SweepRequest`; the curves' predictions end there.
        text_tokens: of one window of text, if known.

    Raises:
        DeltaLLMError: for a value that is unknown or out of range.
    """
    for name in cache_formats:
        if name not in get_args(CacheFormat):
            raise DeltaLLMError(f"cache_format is {name!r}: choose one of {', '.join(get_args(CacheFormat))}.")
    own_granularities = granularities or (("row", "element") if rewards_elements(objectives) else ("row",))
    own_sinks = sinks or spaces.SINKS
    return spaces.Space(
        rules=spaces.rules_of(own_granularities, rules or spaces.RULE_NAMES),
        windows=tuple(dict.fromkeys(windows or _usual_windows(text_tokens, max(own_sinks)))),
        sinks=tuple(dict.fromkeys(own_sinks)),
        v_skips=tuple(dict.fromkeys(v_skips or (spaces.V_SKIPS if rewards_v_skip(objectives) else (0.0,)))),
        cache_formats=tuple(known for known in spaces.CACHE_FORMATS if not cache_formats or known in cache_formats),
        largest_kl=spaces.LARGEST_KL if max_kl is None else max_kl,
    )


def _usual_windows(text_tokens: int | None, sinks: int) -> tuple[int, ...]:
    """Those of `space.WINDOWS` that a window of text is longer than, sinks included; at least the shortest one."""
    if text_tokens is None:
        return spaces.WINDOWS
    fitting = tuple(window for window in spaces.WINDOWS if spaces.holds_keys(window, sinks, text_tokens))
    return fitting or spaces.WINDOWS[:1]


__all__ = ["DEFAULT_GRACE", "DEFAULT_STORAGE", "DEFAULT_TRIALS", "SweepRequest", "find_objectives", "space_for"]
