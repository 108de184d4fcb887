from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, VOCABULARY, save_tiny_decoder

from deltallm_onnx.bench import peak_resident_bytes, resident_bytes, run_child
from deltallm_onnx.errors import DeltaLLMError

CHILD = "deltallm_onnx.bench.memory_child"


def test_the_peak_stays_when_the_memory_is_given_back() -> None:
    # The system counts pages per processor and adds them up now and then: a few may be missing.
    slack = 1 << 20
    before = resident_bytes()
    assert before is not None
    block = np.ones(96 << 20, np.uint8)
    peak = peak_resident_bytes()
    del block
    after = resident_bytes()
    assert after is not None
    assert peak >= before + (96 << 20) - slack
    assert peak_resident_bytes() >= peak - slack
    assert after < peak - (64 << 20)


def test_a_child_is_measured_without_its_parent(tmp_path: Path) -> None:
    model = save_tiny_decoder(tmp_path, grouped_query=True)
    block = np.ones(700 << 20, np.uint8)  # resident here, and no part of the child
    past = 77
    found = run_child(CHILD, {"model": str(model), "past": past, "threads": 1, "chunk": 30, "vocabulary": VOCABULARY})
    assert block[-1] == 1
    assert (30 << 20) < found["peak_resident_bytes"] < (600 << 20)
    assert found["resident_bytes"] <= found["peak_resident_bytes"]
    # Two tokens are decoded behind the past; keys and values are float32.
    assert found["kv_bytes_in_use"] == LAYERS * 2 * KV_HEADS * HEAD_SIZE * 4 * (past + 2)
    assert found["kv_bytes_allocated"] >= found["kv_bytes_in_use"]


def test_a_refusal_in_the_child_is_the_same_refusal_here(tmp_path: Path) -> None:
    with pytest.raises(
        DeltaLLMError, match=r"^There is no file .*nope\.onnx: give the path of an \.onnx or \.ort model\.$"
    ):
        run_child(CHILD, {"model": str(tmp_path / "nope.onnx"), "past": 3, "threads": 1, "chunk": 0, "vocabulary": 9})


def test_a_child_that_breaks_is_a_bug_not_a_refusal() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)memory_child left with 1: .*KeyError"):
        run_child(CHILD, {})
