from __future__ import annotations

import json

import numpy as np
import pytest
from support.measurements import KV_HEADS, LAYERS, TOKENS, measurement

from deltallm_onnx.calibration.measurement import Measurement


def test_json_there_and_back_changes_nothing() -> None:
    before = measurement(kl=(0.1, 1 / 3, 2e-17), loss=(np.pi, 2.5, 1e-3), zeros=7, total=9, kv_bytes=11)
    after = Measurement.from_dict(json.loads(json.dumps(before.to_dict())))
    assert np.array_equal(before.divergence, after.divergence)
    assert np.array_equal(before.loss, after.loss)
    assert all(np.array_equal(a, b) for a, b in zip(before.statistics, after.statistics, strict=True))
    assert (before.tokens, before.seconds) == (after.tokens, after.seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"kl": [0.1]},
        {"kl": [0.1, float("nan")]},
        {"kl": []},
        {"loss": "text"},
        {"statistics": [[1, 2]]},
        {"tokens": 0},
        {"tokens": 1.5},
        {"more": 1},
    ],
)
def test_other_json_is_no_measurement(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the journal turns whatever is wrong into one sentence
        Measurement.from_dict({**measurement().to_dict(), **change})


def test_counters_are_means_over_the_windows() -> None:
    counters = measurement(kl=(0, 0, 0), loss=(1, 1, 1), zeros=6, total=8, kv_bytes=10).counters
    assert counters.delta_sparsity == 0.75
    assert counters.kv_bytes_per_token == 10 * KV_HEADS
    assert (counters.cached_tokens, counters.layers) == (3 * TOKENS, LAYERS)
