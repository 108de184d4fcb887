"""Turn curves into a plan whose measured numbers keep a budget: divergences of single heads do not simply add."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.allocate import Allocation, Frontier
from deltallm_onnx.calibration.budget import Budget, Metric
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.meter import Meter
from deltallm_onnx.calibration.sensitivity import Maker
from deltallm_onnx.calibration.solve import Trial, solve
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.plural import plural

#: What heads cost together over what they cost alone, and the share of a divergence that shows as loss, as measured on
#: the models tried: where the search begins.
USUAL_INTERACTION, USUAL_LOSS = 1.15, 0.7
#: A divergence counts as a loss of at least one of so many parts of it.
MOST_UNSEEN = 3.0
#: A plan is near enough when it leaves this share of the budget; perplexity jumps about more finely than that.
TOLERANCE: dict[Metric, float] = {"kl": 0.02, "ppl": 0.04, "delta_sparsity": 0.005, "kv_bytes": 0.02}
#: Where the allocation jumps over the budget, all scales are raised together by up to this factor.
LARGEST_FACTOR, STRETCH_TRIALS = 1.5, 4
#: … if it leaves more than this share of the budget.
WORTH_STRETCHING = 0.05


@dataclasses.dataclass(frozen=True)
class Tried:
    """One plan that was measured on the search part.

    Attributes:
        window: of the configuration, in tokens.
        knob: cost given to the allocation, in nats per token.
        factor: by which all scales were multiplied.
        value: of the budget's metric.
        limit: what the value stays below with the confidence asked for; the budget is held against it.
        kl: nats per token.
        perplexity_increase: over the dense model's, minus 1.
        delta_sparsity: counter.
        kv_bytes_per_token: counter.
    """

    window: int
    knob: float
    factor: float
    value: float
    limit: float
    kl: float
    perplexity_increase: float
    delta_sparsity: float
    kv_bytes_per_token: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Fit:
    """A plan that keeps the budget on the search part.

    Attributes:
        config: its window, sinks and formats.
        plan: its thresholds.
        allocation: the choices behind them.
        measured: its numbers on the search part.
        value: of the budget's metric.
        limit: what the value stays below with the confidence asked for.
    """

    config: DeltaConfig
    plan: AttentionPlan
    allocation: Allocation
    measured: Measurement
    value: float
    limit: float


class UnreachableError(DeltaLLMError):
    """No plan keeps the budget.

    Attributes:
        best: the nearest value of its metric.
        distance: how far that is from the budget, larger being further.
    """

    def __init__(self, budget: Budget, best: float, config: DeltaConfig, confidence: float = 0.5) -> None:
        self.best, self.distance = best, abs(budget.progress(best) - budget.target)
        settings = f"window {config.window}, {plural(config.sinks, 'sink')} and {config.cache_format} caches"
        hint = ""
        if budget.metric == "kv_bytes" and (
            config.granularity == "element" or config.cache_format not in PACKED_FORMATS
        ):
            hint = " Held keys free no bytes there: use --granularity row and --cache-format int8 or int4."
        sure = f" with a confidence of {confidence:.0%}" if budget.spends and confidence > 0.5 else ""
        super().__init__(
            f"The budget {budget.text} cannot be met with {settings}: the best reachable is {budget.show(best)} on the "
            f"search part of the text{sure}.{hint or ' Give another budget, window or cache format.'}"
        )

    def adding(self, sentence: str) -> Self:
        """The same refusal with one more sentence."""
        self.args = (f"{self} {sentence}",)
        return self


class Search:
    """Closes on a budget along a frontier.

    Args:
        meter: measures.
        maker: of plans.
        budget: to keep.
        max_trials: plans measured per call of `fit`, at most, beside the two ends.
        confidence: with which a loss keeps the budget on more text of the kind; ½ takes the mean itself.

    Attributes:
        maker: of plans; may be replaced between calls.
        tried: every plan measured, in order.
    """

    def __init__(self, meter: Meter, maker: Maker, budget: Budget, max_trials: int, confidence: float = 0.5) -> None:
        self._meter, self.maker, self._budget, self._max_trials = meter, maker, budget, max_trials
        self._confidence = confidence
        self._dense = meter.dense("search")
        self.tried: list[Tried] = []

    def fit(self, config: DeltaConfig, frontier: Frontier) -> Fit:
        """The plan along the frontier that keeps the budget most closely.

        Args:
            config: window, sinks, refresh and cache format.
            frontier: of curves measured with (nearly) that configuration.

        Raises:
            UnreachableError: where even the end of the frontier does not keep the budget.
        """
        budget = self._budget
        seen: dict[tuple[float, float], Fit] = {}

        def at(knob: float, factor: float = 1.0) -> float:
            fit = seen.get((knob, factor)) or self._measure(config, frontier, knob, factor)
            seen[knob, factor] = fit
            return budget.progress(self._believed(fit))

        nothing = Trial(-1.0, at(-1.0))
        if budget.spends and nothing.value > budget.target:
            raise UnreachableError(budget, self._believed(seen[-1.0, 1.0]), config, self._confidence)
        low, high = Trial(0.0, nothing.value), Trial(frontier.highest, at(frontier.highest))
        if high.value <= budget.target:
            if not budget.spends and high.value < budget.target:
                raise UnreachableError(budget, seen[high.knob, 1.0].value, config)
            return seen[high.knob, 1.0]
        if not budget.spends and low.value >= budget.target:
            return seen[-1.0, 1.0]
        best = solve(
            at,
            budget.target,
            low=low,
            high=high,
            start=self._guess(frontier, low.value, high.value),
            below=budget.spends,
            tolerance=self._tolerance,
            max_trials=self._max_trials,
        )
        knob, factor = (-1.0 if best.knob == 0 else best.knob), 1.0
        if budget.spends and best.value < (1 - WORTH_STRETCHING) * budget.target and knob > 0:
            factor = self._stretch(lambda f: at(knob, f), best.value)
        return seen[knob, factor]

    def _believed(self, fit: Fit) -> float:
        """The limit, but for a perplexity that hardly moves while the predictions do.

        On text that a model predicts badly, less context may even help; a budget is not kept by that.
        """
        if self._budget.metric != "ppl":
            return fit.limit
        return max(fit.limit, math.expm1(fit.measured.kl / MOST_UNSEEN))

    def _stretch(self, at: Callable[[float], float], value: float) -> float:
        """A factor on all scales, 1 or more, that uses what a jump of the allocation left over."""
        target = self._budget.target
        end = Trial(LARGEST_FACTOR, at(LARGEST_FACTOR))
        if end.value <= target:
            return end.knob
        found = solve(
            at,
            target,
            low=Trial(1.0, value),
            high=end,
            start=0.0,
            below=True,
            tolerance=self._tolerance,
            max_trials=STRETCH_TRIALS,
        )
        return found.knob

    @property
    def _tolerance(self) -> float:
        return TOLERANCE[self._budget.metric] * abs(self._budget.target)

    def _guess(self, frontier: Frontier, low: float, high: float) -> float:
        """Where the curves alone put the budget."""
        if self._budget.spends:
            ratio = USUAL_INTERACTION * (USUAL_LOSS if self._budget.metric == "ppl" else 1.0)
            return self._budget.limit / ratio
        # What is gained rises with the share held: in proportion, as far as the ends tell.
        wanted = (self._budget.target - low) / (high - low) * frontier.at(frontier.highest).gain
        return frontier.cost_of(wanted)

    def _measure(self, config: DeltaConfig, frontier: Frontier, knob: float, factor: float) -> Fit:
        allocation = frontier.at(knob) if knob >= 0 else frontier.nothing
        plan = self.maker.plan(allocation, factor)
        measured = self._meter.measure("search", config, plan)
        value = self._budget.value(measured, self._dense)
        limit = self._budget.limit_value(measured, self._dense, self._confidence)
        counters = measured.counters
        self.tried.append(
            Tried(
                window=config.window,
                knob=knob,
                factor=factor,
                value=value,
                limit=limit,
                kl=measured.kl,
                perplexity_increase=measured.perplexity_increase(self._dense),
                delta_sparsity=counters.delta_sparsity,
                kv_bytes_per_token=counters.kv_bytes_per_token,
            )
        )
        return Fit(config, plan, allocation, measured, value, limit)


def most_plans(max_trials: int) -> int:
    """Plans that one `Search.fit` measures at most: two ends, the trials, and a stretch."""
    return 2 + max_trials + 1 + STRETCH_TRIALS


def best_fit(fits: Sequence[Fit], budget: Budget) -> Fit:
    """Of plans that all keep the budget: the one that gives most for it, or costs least.

    What counts is the cache in bytes where held rows free some, else the products that are left out.
    """

    def rank(fit: Fit) -> tuple[float, float]:
        counters = fit.measured.counters
        if not budget.spends:
            return fit.measured.kl, 0.0
        return counters.kv_bytes_per_token, -counters.qk_mac_sparsity

    return min(fits, key=rank)
