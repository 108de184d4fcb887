"""What a calibration is asked for, and what it tries where nothing is said."""

from __future__ import annotations

import dataclasses
from typing import Any

from deltallm_onnx.calibration.budget import Budget, parse_budget
from deltallm_onnx.calibration.effort import find_effort
from deltallm_onnx.calibration.rules import find_rule
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError

#: ε tried where the user gives none and the effort is full; above, the loss grows faster than what is left out.
V_SKIPS = (0.0, 3e-4, 1e-3, 3e-3)
#: Exact windows tried then, in tokens.
WINDOWS = (32, 64, 128)
#: Share of calibrations that should keep their budget on more text of the kind.
CONFIDENCE = 0.7


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        budget: to keep.
        config: window, sinks, refresh, granularity, cache format and prefill of the result; its threshold and row rule
            are not read, window and v_skip only where there is nothing to choose from.
        windows: exact windows to choose from, in tokens; empty takes the config's.
        v_skips: ε to choose from, in ascending order; empty takes the config's.
        rules: names, of the config's granularity; None leaves the choice to the effort.
        effort: "full" or "short".
        confidence: with which a loss should keep the budget on more text of the kind, ½ … 0.99; ½ spends all of it on
            the search part's mean.
        seed: of the confidence intervals.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Raises:
        DeltaLLMError: for an unknown effort or rule, and a confidence out of range.
    """

    budget: Budget
    config: DeltaConfig
    windows: tuple[int, ...] = ()
    v_skips: tuple[float, ...] = ()
    rules: tuple[str, ...] | None = None
    effort: str = "full"
    confidence: float = CONFIDENCE
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        find_effort(self.effort)
        if not 0.5 <= self.confidence <= 0.99:
            raise DeltaLLMError(f"The confidence {self.confidence:g} is out of range: give one from 0.5 to 0.99.")
        for rule in self.rules or ():
            find_rule(self.config.granularity, rule)
        for window in self.windows:
            self.config.replace(window=window)  # refuses a window that the cache format cannot have

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, without what stands elsewhere in a result."""
        return {
            "effort": self.effort,
            "confidence": self.confidence,
            "windows": list(self.windows or (self.config.window,)),
            "v_skips": list(self.v_skips or (self.config.v_skip,)),
            "rules": None if self.rules is None else list(self.rules),
            "seed": self.seed,
            "threads": self.threads,
        }


def request_for(
    budget: str,
    config: DeltaConfig,
    *,
    windows: tuple[int, ...] = (),
    v_skip: float | None = None,
    rules: tuple[str, ...] | None = None,
    effort: str = "full",
    confidence: float = CONFIDENCE,
    seed: int = 0,
    threads: int | None = None,
) -> Request:
    """The request behind options of the command line: what is not said is tried where the effort is full.

    Args:
        budget: as behind --budget.
        config: global settings.
        windows: as in `Request`.
        v_skip: ε; None is not said.
        rules: as in `Request`.
        effort: as in `Request`.
        confidence: as in `Request`.
        seed: as in `Request`.
        threads: as in `Request`.

    Raises:
        DeltaLLMError: for a budget of no known form, and as `Request`.
    """
    full = effort == "full"
    return Request(
        budget=parse_budget(budget),
        config=config,
        windows=windows or (WINDOWS if full else ()),
        v_skips=() if v_skip is not None else V_SKIPS if full else (),
        rules=rules,
        effort=effort,
        confidence=confidence,
        seed=seed,
        threads=threads,
    )
