"""Whole path: a model exported and rewritten with θ = 0 computes what transformers' eager attention computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from support.hf_reference import Scenario, largest_error, load_eager, scenarios
from support.tiny_models import ARCHITECTURES, TITLES, exported, shared_directory

import deltallm_onnx
from deltallm_onnx import profile

#: Float32 logits of a few layers, standard deviation about 1, computed in two orders.
TOLERANCE = 1e-4
#: A window and sinks far below the lengths of the scenarios, so that rows are coded (with θ = 0: as they are).
EXACT = profile("exact").replace(window=3, sinks=1)


def session(path: Path, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if library:
        deltallm_onnx.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# From the end, so that two workers that go through the list from both ends share the exports.
@pytest.fixture(scope="module", params=[*reversed(ARCHITECTURES)])
def architecture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[Scenario]]:
    """A rewritten model and what is expected of it."""
    dense = exported(request.param, shared_directory(tmp_path_factory))
    rewritten = tmp_path_factory.mktemp(request.param) / "delta.onnx"
    report = deltallm_onnx.rewrite(dense, rewritten, EXACT)
    assert report.rewrite.rewritten == report.rewrite.layers > 0
    return request.param, rewritten, list(scenarios(load_eager(dense.parent / "model"), seed=3))


@pytest.mark.parametrize("library", [False, True], ids=["fallback", "library"])
def test_equals_eager(
    architecture: tuple[str, Path, list[Scenario]], architecture_cell: Callable[..., None], *, library: bool
) -> None:
    name, path, expected = architecture
    errors = largest_error(session(path, library=library), expected)
    assert max(errors.values()) < TOLERANCE, errors
    if library:
        architecture_cell(TITLES[name], "transformers", difference=max(errors.values()))
