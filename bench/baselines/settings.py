"""The methods that are compared, each over a small grid of its own knobs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.baselines.budgets import CALIBRATED, DELTA, H2O, KIVI, NEWEST_HITTERS, PLAIN, QUEST, STREAMING
from bench.baselines.delta import DeltaRows
from bench.baselines.heavy_hitters import HeavyHitters
from bench.baselines.kivi import Kivi
from bench.baselines.method import Method
from bench.baselines.plain import Plain
from bench.baselines.quest import Quest
from bench.baselines.storage import INT4, INT8, STORAGES
from bench.baselines.streaming import StreamingLLM
from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan

SINKS = 4
#: Rows per KV head that are kept, or read; windows of 1024 tokens.
BUDGETS = (32, 64, 96, 128, 192, 256, 384, 512, 768)
RECENT_SHARES = (0.25, 0.5, 0.75)
DECAYS = (1 - 1 / 64, 1 - 1 / 256)
PAGES = (2, 4, 8, 16, 32)
DENSE_LAYERS = (0, 2)
KIVI_GROUP = 32
KIVI_BITS, KIVI_RESIDUALS = (2, 4), (32, 64, 128)
WINDOWS = (16, 64)
#: θ of the relative rule, and of the absolute one with w = rms(q).
RELATIVE, ABSOLUTE = (0.5, 0.7, 0.85, 1.0, 1.2), (4, 8, 12, 16, 24)
#: Divergences that calibrated thresholds are asked to keep, in nats, and their exact window.
CALIBRATED_KL, CALIBRATED_WINDOW = (0.0005, 0.002, 0.006, 0.015, 0.04), 64


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method with its knobs set.

    Attributes:
        family: one of FAMILIES.
        knobs: by name, JSON-ready.
        method: that has them.
    """

    family: str
    knobs: Mapping[str, Any]
    method: Method

    def to_dict(self) -> dict[str, Any]:
        """Family and knobs."""
        return {"family": self.family, "knobs": dict(self.knobs)}


def baselines() -> list[Setting]:
    """All settings of the methods beside ours."""
    found = [Setting(PLAIN, {"rows": storage.name}, Plain(storage)) for storage in STORAGES.values()]
    for bits, residual in itertools.product(KIVI_BITS, KIVI_RESIDUALS):
        knobs = {"bits": bits, "group": KIVI_GROUP, "residual": residual}
        found.append(Setting(KIVI, knobs, Kivi(bits, KIVI_GROUP, residual)))
    for storage, rows in itertools.product((INT8, INT4), BUDGETS):
        kept = {"kept": rows, "rows": storage.name}
        found.append(Setting(STREAMING, kept, StreamingLLM(SINKS, rows - SINKS, storage)))
        for share in RECENT_SHARES:
            recent = round(share * rows)
            found.append(Setting(H2O, {**kept, "recent": recent}, HeavyHitters(rows, recent, 1.0, storage)))
        for decay in DECAYS:
            knobs = {**kept, "recent": rows // 2, "decay": round(decay, 4)}
            found.append(Setting(NEWEST_HITTERS, knobs, HeavyHitters(rows, rows // 2, decay, storage)))
    for storage, pages, dense, shared in itertools.product((INT8, INT4), PAGES, DENSE_LAYERS, (False, True)):
        knobs = {"pages": pages, "rows": storage.name, "dense layers": dense, "shared": shared}
        found.append(Setting(QUEST, knobs, Quest(pages, dense, shared, storage)))
    return found


def one_threshold(weights: Sequence[npt.NDArray[np.float32]], kv_heads: int) -> list[Setting]:
    """Ours with one threshold for all layers and heads, by two rules.

    Args:
        weights: rms of the query channels, float32 [Hkv, D] per layer.
        kv_heads: Hkv.
    """
    found = []
    rules = [("relative", theta) for theta in RELATIVE] + [("absolute", theta) for theta in ABSOLUTE]
    for cache_format, window, (rule, theta) in itertools.product(("int8", "int4"), WINDOWS, rules):
        plan = AttentionPlan(
            tuple(
                LayerPlan(
                    layer=layer,
                    threshold=np.full(kv_heads, theta, np.float32),
                    row_weight=weight if rule == "absolute" else None,
                    granularity="row",
                    row_rule="absolute" if rule == "absolute" else "relative",
                )
                for layer, weight in enumerate(weights)
            )
        )
        knobs = {"rows": cache_format, "window": window, "rule": rule, "θ": theta}
        found.append(Setting(DELTA, knobs, DeltaRows(plan, window, SINKS, cache_format)))
    return found


def calibrated(plan: AttentionPlan, cache_format: str, kl: float) -> Setting:
    """Ours with calibrated thresholds.

    Args:
        plan: of the model, calibrated with an int8 cache.
        cache_format: "int8" or "int4".
        kl: that was asked for, in nats.
    """
    knobs = {"rows": cache_format, "window": CALIBRATED_WINDOW, "budget": f"kl={kl:g}"}
    return Setting(CALIBRATED, knobs, DeltaRows(plan, CALIBRATED_WINDOW, SINKS, cache_format))
