"""`calibrate`: the steps of a calibration, in order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.allocate import Curve, Frontier
from deltallm_onnx.calibration.budget import Budget
from deltallm_onnx.calibration.effort import Sampling, find_effort, sample
from deltallm_onnx.calibration.journal import Journal
from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.request import Request
from deltallm_onnx.calibration.result import Calibration, Reached
from deltallm_onnx.calibration.rules import Rule, find_rule
from deltallm_onnx.calibration.search import Fit, Search, UnreachableError, best_fit, most_plans
from deltallm_onnx.calibration.sensitivity import Maker, measure_curves
from deltallm_onnx.calibration.statistics import LayerStatistics, layer_statistics
from deltallm_onnx.calibration.text import TextParts
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.runtime.environment import environment

#: Share of a divergence budget that leaving out values may take, and the divergence for other budgets.
V_SKIP_SHARE, V_SKIP_KL = 0.02, 1e-4
#: A budget of which this share is left over is worth a sentence, and when nothing is left to hold.
MUCH_LEFT, NEARLY_ALL = 0.1, 0.995


class Progress(Protocol):
    """Receives what is going on."""

    def begin(self, reads: int, seconds: float) -> None:
        """The bill, after the first window: so many will be read at most, and it may take so long."""

    def step(self, what: str) -> None:
        """A new step begins."""

    def note(self, text: str) -> None:
        """A sentence that is worth keeping in sight."""

    def read(self, windows: int) -> None:
        """So many windows were read."""


class Silent:
    """Progress that nobody wants to see."""

    def begin(self, reads: int, seconds: float) -> None:
        """See `Progress`."""

    def step(self, what: str) -> None:
        """See `Progress`."""

    def note(self, text: str) -> None:
        """See `Progress`."""

    def read(self, windows: int) -> None:
        """See `Progress`."""


def calibrate_dense(
    dense: Path,
    parts: TextParts,
    request: Request,
    *,
    model: Mapping[str, Any],
    journal: Journal,
    folder: Path,
    progress: Progress | None = None,
) -> Calibration:
    """Find thresholds for a dense .onnx model.

    Args:
        dense: the file, not rewritten.
        parts: the text.
        request: budget and candidates.
        model: name and "sha256" of the model, for the result; the digest covers the weights.
        journal: measurements of an earlier run, and of this one.
        folder: for temporary files.
        progress: receives what is going on.

    Raises:
        UnreachableError: where no plan keeps the budget, with the best reachable.
        DeltaLLMError: where the model cannot be run or rewritten.
    """
    show, began = progress or Silent(), time.perf_counter()
    meter = ModelMeter(
        dense, str(model["sha256"]), parts, journal, folder=folder, threads=request.threads, on_read=show.read
    )
    sampling = _sampling(request, meter.geometry, parts)
    reads = _reads(request, sampling, parts)
    try:
        show.step("reading the text with the dense model")
        meter.open(lambda seconds: show.begin(reads, reads * seconds))
        statistics = layer_statistics(dense, parts.sensitivity, sinks=request.config.sinks, threads=request.threads)
        show.read(len(parts.sensitivity))
        run = _Run(meter, statistics, request, sampling, show)
        fit = run.fit()
        show.step("verifying")
        verification = meter.measure("verification", fit.config, fit.plan)
    finally:
        meter.close()
    fitted = Reached(fit.measured, meter.dense("search"), request.seed)
    verified = Reached(verification, meter.dense("verification"), request.seed)
    return Calibration(
        config=fit.config,
        plan=fit.plan,
        budget=request.budget,
        calibration=fitted,
        verification=verified,
        rules={layer: choice.rule for layer, choice in fit.allocation.layers.items()},
        curves=run.curves,
        tried=run.search.tried,
        text=parts.to_dict(),
        model=model,
        settings={**request.to_dict(), "sampling": dataclasses.asdict(sampling)},
        notes=_notes(request.budget, fitted, verified, fit.limit),
        environment=environment(),
        seconds=time.perf_counter() - began,
    )


def _sampling(request: Request, geometry: Sequence[LayerGeometry], parts: TextParts) -> Sampling:
    return sample(
        find_effort(request.effort),
        granularity=request.config.granularity,
        rules=request.rules,
        layers=len(geometry),
        heads=sum(layer.kv_num_heads for layer in geometry),
        windows=len(parts.sensitivity),
    )


def _reads(request: Request, sampling: Sampling, parts: TextParts) -> int:
    """Windows read at most, by whatever form of the model."""
    kinds = {_kind(find_rule(request.config.granularity, rule), request.config) for rule in sampling.rules}
    plans = max(1, len(request.windows)) * len(kinds) * most_plans(find_effort(request.effort).trials)
    dense = 2 * len(parts.sensitivity) + len(parts.search) + len(parts.verification)
    v_skips = len(request.v_skips) * sampling.windows
    return dense + sampling.reads + v_skips + plans * len(parts.search) + len(parts.verification)


class _Run:
    """The measuring steps, and what they leave for the result."""

    def __init__(
        self,
        meter: ModelMeter,
        statistics: Sequence[LayerStatistics],
        request: Request,
        sampling: Sampling,
        show: Progress,
    ) -> None:
        self._meter, self._request, self._sampling, self._show = meter, request, sampling, show
        self._windows = request.windows or (request.config.window,)
        self._rules = {name: find_rule(request.config.granularity, name) for name in sampling.rules}
        self._maker = Maker(statistics, self._rules)
        self.curves: list[Curve] = []
        trials = find_effort(request.effort).trials
        self.search = Search(meter, self._maker, request.budget, trials, request.confidence)

    def fit(self) -> Fit:
        """The best plan that keeps the budget.

        Raises:
            UnreachableError: where there is none.
        """
        # What is measured with one window serves its neighbours too: what it gets wrong the search puts right.
        config = self._request.config.replace(window=sorted(self._windows)[len(self._windows) // 2])
        self._show.step("values that may be left out")
        self._maker = self.search.maker = dataclasses.replace(self._maker, v_skip=self._choose_v_skip(config))
        self._show.step("what single heads cost")
        self.curves = measure_curves(self._meter, self._maker, config, self._sampling)
        fits, refusals = [], []
        for window in self._windows:
            for frontier in self._frontiers():
                self._show.step(f"closing on {self._request.budget.text} with window {window}")
                try:
                    fits.append(self.search.fit(config.replace(window=window), frontier))
                except UnreachableError as error:
                    refusals.append(error)
        if not fits:
            raise min(refusals, key=lambda refusal: refusal.distance)
        return best_fit(fits, self._request.budget)

    def _choose_v_skip(self, config: DeltaConfig) -> float:
        """The largest ε that costs next to nothing by itself."""
        budget = self._request.budget
        choices = self._request.v_skips or (config.v_skip,)
        if len(choices) == 1:
            return choices[0]
        allowed = V_SKIP_SHARE * budget.limit if budget.spends else V_SKIP_KL
        rule, best = self._sampling.rules[0], choices[0]
        first: float | None = None
        for v_skip in choices:
            plan = dataclasses.replace(self._maker, v_skip=v_skip).everywhere(rule, 0.0)
            kl = self._meter.measure("sensitivity", config, plan, windows=self._sampling.windows).kl
            first = kl if first is None else first
            if kl - first > allowed:
                break
            best = v_skip
        return best

    def _frontiers(self) -> list[Frontier]:
        """One for each kind of rules that layers may have together."""
        by_kind: dict[str, list[Curve]] = {}
        for curve in self.curves:
            by_kind.setdefault(_kind(self._rules[curve.rule], self._request.config), []).append(curve)
        return [Frontier(curves) for curves in by_kind.values()]


def _kind(rule: Rule, config: DeltaConfig) -> str:
    """Rules of one kind may be mixed: float caches carry fallback functions, and one serves all layers."""
    mixed = config.cache_format in PACKED_FORMATS or rule.granularity == "element"
    return "any" if mixed else rule.row_rule


def _notes(budget: Budget, fitted: Reached, verified: Reached, limit: float) -> list[str]:
    """What a user should know, where the budget is not simply used up and kept; `limit` is that of the fit."""
    notes = []
    spent = budget.value(fitted.measured, fitted.dense)
    if budget.spends and limit < (1 - MUCH_LEFT) * budget.limit:
        why = "no plan nearer to it was found"
        if fitted.measured.counters.delta_sparsity > NEARLY_ALL:
            why = "every key outside the window is held already"
        elif budget.metric == "ppl":
            why = (
                f"predictions change more than perplexity shows (kl={fitted.measured.kl:.4g}), as happens on "
                "text that the model predicts badly; use other text, or a budget of kl"
            )
        notes.append(f"of the budget {budget.text} only {budget.show(spent)} is used: {why}.")
    value, interval = budget.value(verified.measured, verified.dense), verified.interval(budget)
    if not budget.met(value):
        notes.append(
            f"on the verification part the plan reaches {budget.show(value)} for a budget of {budget.text}, which it "
            "keeps on the search part."
        )
    if budget.spends and interval is None:
        notes.append(
            f"one window of verification gives no interval of {budget.metric}: measure on more text before relying on "
            "it."
        )
    if interval is not None and interval[1] - interval[0] > budget.limit:
        notes.append(
            f"the 95 % interval of {budget.metric} on the verification part is wider than the budget itself: measure "
            "on more text before relying on it."
        )
    return notes
