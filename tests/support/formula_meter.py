"""A model whose measurements are a formula of the thresholds, for tests of the search."""

from __future__ import annotations

import dataclasses

import numpy as np

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.calibration.measurement import Measurement
from deltallm_onnx.calibration.rules import RULES, Rule
from deltallm_onnx.calibration.statistics import LayerStatistics
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.counters import COLUMNS

ROWS_CODED, TOKENS, HEAD_SIZE = 1000, 64, 16
#: Of one KV head: what a divergence of 1 costs, by layer.
SENSITIVITY = {0: (0.2, 0.002), 3: (0.03, 0.01, 0.02)}


class FormulaMeter:
    """Held shares and divergences by formula; both fall apart into heads, but for `interaction`.

    A head with threshold θ holds most·(1 − e^(−(θ/u)²)) of its rows, u its usual change, and costs
    sensitivity·share^4; a layer's worse rule costs three times that. All heads together cost
    floor + total·(1 + (interaction − 1)·total/(total + 0.01)).

    The loss rises by loss_share of the divergence, and the two windows lie `spread` of it below and above the mean.

    Args:
        merges: whether held rows free bytes.
    """

    def __init__(self, *, merges: bool = True) -> None:
        self.interaction, self.floor, self.most, self._merges = 1.0, 0.0, 1.0, merges
        self.loss_share, self.spread = 1.0, 0.0
        self.rules: dict[str, Rule] = {name: RULES["row", name] for name in ("relative", "absolute")}
        self.better_rules = {0: "relative", 3: "absolute"}
        random = np.random.default_rng(8)
        self.layers = [
            LayerStatistics(
                geometry=LayerGeometry(layer, 2 * len(heads), len(heads), HEAD_SIZE),
                scale=1.0,
                tokens=100,
                query_rms=random.uniform(0.5, 2, (len(heads), HEAD_SIZE)),
                key_rms=random.uniform(1, 2, (len(heads), HEAD_SIZE)),
                key_std=np.ones((len(heads), HEAD_SIZE)),
                change_rms=random.uniform(0.5, 1, (len(heads), HEAD_SIZE)),
                value_rms=np.ones((len(heads), HEAD_SIZE)),
            )
            for layer, heads in SENSITIVITY.items()
        ]
        self.geometry = tuple(layer.geometry for layer in self.layers)

    def held_shares(self, plan: AttentionPlan) -> list[np.ndarray]:
        shares = []
        for layer in self.layers:
            entry = plan[layer.geometry.layer]
            usual = np.sqrt(np.square(layer.change_rms).sum(axis=1))
            if entry.row_rule == "relative":
                usual = usual / np.sqrt(np.square(layer.key_rms).sum(axis=1))
            shares.append(self.most * -np.expm1(-np.square(entry.threshold / usual)))
        return shares

    def dense(self, part: str) -> Measurement:
        del part
        return self._measurement(0.0, [np.zeros(len(heads)) for heads in SENSITIVITY.values()], 4 * HEAD_SIZE)

    def measure(
        self, part: str, config: DeltaConfig, plan: AttentionPlan, *, windows: int | None = None
    ) -> Measurement:
        del part, config, windows
        shares = self.held_shares(plan)
        total = 0.0
        for layer, held in zip(self.layers, shares, strict=True):
            number = layer.geometry.layer
            worse = 1.0 if plan[number].row_rule == self.better_rules[number] else 3.0
            total += float((worse * np.array(SENSITIVITY[number]) * held**4).sum())
        together = total * (1 + (self.interaction - 1) * total / (total + 0.01))
        return self._measurement(self.floor + together, shares, HEAD_SIZE)

    def errors(self, config: DeltaConfig, plan: AttentionPlan, *, windows: int) -> Measurement:
        """In proportion to the costs, by a factor per head; coding leaves an error too."""
        shares = self.held_shares(plan)
        errors = []
        for layer, held in zip(self.layers, shares, strict=True):
            number = layer.geometry.layer
            worse = 1.0 if plan[number].row_rule == self.better_rules[number] else 3.0
            costs = worse * np.array(SENSITIVITY[number]) * held**4
            errors.append(costs * (7.0 + np.arange(len(held)) + number) + 0.25)
        found = self.measure("sensitivity", config, plan, windows=windows)
        return dataclasses.replace(found, errors=tuple(errors))

    def _measurement(self, kl: float, shares: list[np.ndarray], row_bytes: int) -> Measurement:
        statistics = []
        for held in shares:
            counts = np.zeros((len(held), COLUMNS), np.int64)
            counts[:, 0], counts[:, 1] = ROWS_CODED, np.round(held * ROWS_CODED)
            freed = held if self._merges else 0.0 * held
            counts[:, 6] = np.round(2 * row_bytes * TOKENS * 2 * (0.1 + 0.9 * (1 - freed)))
            statistics.append(counts)
        divergence = kl * np.array([1 - self.spread, 1 + self.spread])
        return Measurement(divergence, 3.0 + self.loss_share * divergence, tuple(statistics), TOKENS, 0.1)
