"""The bundled model in every form that the plan is held against, and one whose vocabulary outweighs all else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support import tiny_decoder
from support.memory_models import LARGE_VOCABULARY

from deltallm_onnx import DeltaConfig, WeightFormat
from deltallm_onnx.convert import rewrite
from deltallm_onnx.export import export_model

DEMO = Path(__file__).parents[2] / "models" / "demo"


@pytest.fixture(scope="package")
def demo_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "dense.onnx"
    export_model(DEMO, path)
    return path


@pytest.fixture(scope="package")
def demo(demo_dense: Path) -> Callable[[str, str], Path]:
    """The path of the model with this format of caches and this one of weights."""

    def written(cache_format: str, weights: str) -> Path:
        path = demo_dense.with_name(f"{cache_format}-{weights}.onnx")
        if not path.exists():
            config = DeltaConfig(threshold=0.6, window=128, sinks=4, cache_format=cache_format)  # type: ignore[arg-type]  # one of its names
            stored = None if weights == "float32" else WeightFormat(weights)  # type: ignore[arg-type]  # one of its names
            rewrite(demo_dense, path, config, weights=stored, copy_library=False)
        return path

    return written


@pytest.fixture(params=["inside the file", "in a data file"])
def large_vocabulary(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """13 MB of embedding and head; the rest is a few kB."""
    monkeypatch.setattr(tiny_decoder, "VOCABULARY", LARGE_VOCABULARY)
    path = tmp_path / "large.onnx"
    outside = request.param == "in a data file"
    onnx.save(tiny_decoder.tiny_decoder(grouped_query=True), path, save_as_external_data=outside, location="large.data")
    return path
