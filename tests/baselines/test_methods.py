"""Every method gives what its definition, token by token over rows it holds, gives; and none sees what comes later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.cache_definitions import (
    STORED,
    Cache,
    DeltaCache,
    HeavyHitterCache,
    KiviCache,
    QuestCache,
    StreamingCache,
    run,
)
from support.random_cases import key_rows

from bench.baselines.delta import DeltaRows
from bench.baselines.heavy_hitters import HeavyHitters
from bench.baselines.kivi import Kivi
from bench.baselines.method import Attended, Method
from bench.baselines.plain import Plain
from bench.baselines.quest import Quest
from bench.baselines.storage import FLOAT32, STORAGES
from bench.baselines.streaming import StreamingLLM
from deltallm_onnx.attention_plan import AttentionPlan, LayerPlan
from deltallm_onnx.reference.hold import check_row_weight, check_threshold
from deltallm_onnx.reference.packed import CodingRules, PackedLayout

B, HKV, G, D, S = 2, 3, 2, 40, 61
LAYER = 1
ENDLESS = 10**6

Make = Callable[[int], Cache]


def inputs(tokens: int = S, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    key = key_rows(rng, (B, HKV, tokens, D), grid=False).astype(np.float32)
    value = rng.normal(0, 1, (B, HKV, tokens, D)).astype(np.float32)
    query = rng.normal(0, 0.4, (B, HKV * G, tokens, D)).astype(np.float32)
    return query, key, value


def attend(method: Method, *qkv: np.ndarray) -> Attended:
    return method(LAYER, *(torch.from_numpy(x) for x in qkv))


def plan(theta: float, *, rule: str = "relative", weighted: bool = False) -> AttentionPlan:
    weight = np.random.default_rng(9).uniform(0.2, 2, (HKV, D)).astype(np.float32) if weighted else None
    thresholds = (theta * np.array([1, 1.25, 0.8])).astype(np.float32)
    layers = tuple(LayerPlan(n, thresholds if n == LAYER else 0 * thresholds, weight, "row", rule) for n in range(3))
    return AttentionPlan(layers)


def delta(
    theta: float, cache_format: str, tokens: int, window: int, sinks: int, **settings: Any
) -> tuple[Method, Make]:
    method = DeltaRows(plan(theta, **settings), window, sinks, cache_format)
    own = method.plan[LAYER]
    layout = PackedLayout(cache_format, D, sinks, window)

    def make(head: int) -> DeltaCache:
        theta = check_threshold(own.threshold, HKV, D, "row")[head]
        weight = check_row_weight(own.row_weight, HKV, D)[head]
        return DeltaCache(layout, CodingRules(theta, weight, "row", own.row_rule, 0, merges=True), tokens)

    return method, make


CASES: dict[str, tuple[Method, Make]] = {
    **{
        f"plain {name}": (Plain(STORAGES[name]), lambda _, s=s: StreamingCache(0, ENDLESS, s))
        for name, s in STORED.items()
    },
    **{
        f"streaming {sinks} {window} {name}": (
            StreamingLLM(sinks, window, STORAGES[name]),
            lambda _, a=sinks, w=window, n=name: StreamingCache(a, w, STORED[n]),
        )
        for sinks, window, name in ((3, 11, "int8"), (0, 1, "float32"), (5, 20, "int4"), (4, 50, "float16"))
    },
    **{
        f"heavy hitters {budget} {recent} {decay}": (
            HeavyHitters(budget, recent, decay, STORAGES[name]),
            lambda _, a=budget, r=recent, d=decay, n=name: HeavyHitterCache(a, r, d, STORED[n]),
        )
        for budget, recent, decay, name in ((17, 8, 1.0, "int8"), (17, 5, 0.9, "int4"), (9, 0, 1.0, "float32"))
    },
    **{
        f"quest {pages} {dense} {shared}": (
            Quest(pages, dense, shared, STORAGES[name], page=7),
            lambda _, p=pages, d=dense, s=shared, n=name: QuestCache(p, 7, STORED[n], shared=s, dense=d > LAYER),
        )
        for pages, dense, shared, name in (
            (3, 0, False, "int8"),
            (3, 1, True, "int4"),
            (1, 0, False, "float32"),
            (2, 2, True, "int8"),
        )
    },
    **{
        f"kivi {bits} {group} {residual}": (
            Kivi(bits, group, residual),
            lambda _, b=bits, g=group, r=residual: KiviCache(b, g, r),
        )
        for bits, group, residual in ((2, 8, 16), (4, 16, 16), (4, 10, 20))
    },
    "delta int8": delta(0.5, "int8", S, window=9, sinks=3),
    "delta int8, no sinks": delta(0.5, "int8", S, window=8, sinks=0),
    "delta int8, no window": delta(0.5, "int8", S, window=0, sinks=8),
    "delta int8, weights": delta(2.5, "int8", S, window=11, sinks=2, rule="absolute", weighted=True),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_its_definition(name: str) -> None:
    method, make = CASES[name]
    qkv = inputs()
    output, kept, read = run(make, *qkv)
    found = attend(method, *qkv)
    np.testing.assert_array_equal(found.kept.numpy(), kept)
    np.testing.assert_array_equal(found.read.numpy(), read)
    np.testing.assert_allclose(found.output.numpy(), output, atol=2e-5)
    assert np.abs(output - attend(Plain(FLOAT32), *qkv).output.numpy()).max() > (2e-5 if "float32" not in name else -1)


def test_sealed_blocks_of_ours_are_the_formats() -> None:
    tokens = 330
    method, make = delta(0.08, "int4", tokens, window=9, sinks=3)
    qkv = inputs(tokens, seed=3)
    output, kept, read = run(make, *qkv)
    found = attend(method, *qkv)
    np.testing.assert_array_equal(found.kept.numpy(), kept)
    np.testing.assert_array_equal(found.read.numpy(), read)
    np.testing.assert_allclose(found.output.numpy(), output, atol=2e-5)
    row = PackedLayout("int4", D, 3, 9).row_bytes
    # A sealed block is smaller than its rows were, and runs are merged.
    assert (np.diff(kept, axis=1) < 0).any()
    assert kept[:, -1].max() < 2 * HKV * row * tokens


LIMITS: dict[str, Method] = {
    "streaming": StreamingLLM(4, S - 4, FLOAT32),
    "heavy hitters": HeavyHitters(S, 8, 0.9, FLOAT32),
    "quest, all pages": Quest(-(-S // 7), 0, False, FLOAT32, page=7),
    "quest, dense layers": Quest(1, LAYER + 1, True, FLOAT32, page=7),
}


@pytest.mark.parametrize("name", LIMITS)
def test_with_room_for_everything_it_is_dense(name: str) -> None:
    qkv = inputs()
    dense, found = attend(Plain(FLOAT32), *qkv), attend(LIMITS[name], *qkv)
    np.testing.assert_allclose(found.output.numpy(), dense.output.numpy(), atol=2e-6)


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_ours_with_nothing_held_is_its_rows(cache_format: str) -> None:
    """With θ = 0 and nothing sealed only the rows' 8 bits are left; 4 bytes of a row are scale and tag."""
    query, key, value = inputs()
    # No two keys are equal, or θ = 0 would hold the second.
    qkv = query, key + np.random.default_rng(1).normal(0, 1, key.shape).astype(np.float32), value
    plain = attend(Plain(STORAGES["int8"]), *qkv)
    found = attend(delta(0.0, cache_format, S, window=9, sinks=3)[0], *qkv)
    np.testing.assert_allclose(found.output.numpy(), plain.output.numpy(), atol=2e-6)
    np.testing.assert_array_equal(found.kept * (D + 2), plain.kept * (D + 4))


@pytest.mark.parametrize("name", [*CASES, "delta int4"])
def test_it_does_not_look_ahead(name: str) -> None:
    """Other tokens from t on change nothing before t."""
    tokens, t = (300, 270) if name == "delta int4" else (S, 40)
    method = delta(0.08, "int4", tokens, window=9, sinks=3)[0] if name == "delta int4" else CASES[name][0]
    qkv, other = inputs(tokens, seed=5), inputs(tokens, seed=6)
    changed = [np.concatenate([x[:, :, :t], y[:, :, t:]], axis=2) for x, y in zip(qkv, other, strict=True)]
    before, after = attend(method, *qkv), attend(method, *changed)
    np.testing.assert_allclose(after.output[:, :, :t].numpy(), before.output[:, :, :t].numpy(), atol=1e-6)
    np.testing.assert_array_equal(after.kept[:, :t].numpy(), before.kept[:, :t].numpy())
    np.testing.assert_array_equal(after.read[:, :t].numpy(), before.read[:, :t].numpy())
    assert np.abs(after.output[:, :, t:].numpy() - before.output[:, :, t:].numpy()).max() > 0.1
