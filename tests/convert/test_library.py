"""A rewritten file gives the same with the operator library and without, fused and unfused, counters included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from support.attention_models import attention_model, exporter_mask, random_feeds

import deltallm_onnx
from deltallm_onnx import DeltaConfig

CONFIGS = {
    "row": DeltaConfig(threshold=1.1, window=2, sinks=1, cache_format="float32"),
    "element": DeltaConfig(
        threshold=0.9,
        window=3,
        sinks=2,
        granularity="element",
        refresh=4,
        v_skip=0.05,
        prefill="delta",
        cache_format="float32",
    ),
}
#: Single softmaxes over at most 17 float32 scores, summed in another order.
TOLERANCE = 1e-5


def run(path: Path, feeds: dict[str, NDArray[np.float32]], *, library: bool) -> dict[str, NDArray[np.float32]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        deltallm_onnx.register(options)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    wanted = {value.name: feeds[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, wanted), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_library_and_functions_agree(name: str, tmp_path: Path) -> None:
    dense = attention_model(exporter_mask(9), layers=2, layout="rotary", softcap=4.0)
    onnx.save_model(dense, tmp_path / "dense.onnx")
    feeds = random_feeds(dense, new=5, past=12, padding=3, seed=8)
    results = {}
    for unfused in (False, True):
        path = tmp_path / f"{unfused}.onnx"
        deltallm_onnx.rewrite(tmp_path / "dense.onnx", path, CONFIGS[name], statistics=True, unfused=unfused)
        for library in (False, True):
            results[unfused, library] = run(path, feeds, library=library)
    expected = results.pop((False, False))
    for layer in range(2):
        # Something must have been held, or there is nothing to agree on.
        assert expected[f"statistics.{layer}"][:, 1].min() > 0
    for actual in results.values():
        for output, array in expected.items():
            if output.startswith("statistics"):
                np.testing.assert_array_equal(actual[output], array)
            else:
                np.testing.assert_allclose(actual[output], array, atol=TOLERANCE, rtol=0, err_msg=output)
