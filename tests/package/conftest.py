from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.packages import CONFIG
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx import rewrite


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small decoder with int8 caches."""
    dense = save_tiny_decoder(tmp_path_factory.mktemp("tiny"))
    model = rewrite(dense, dense.with_name("small.onnx"), CONFIG).path
    # As some releases of transformers wrote it.
    (dense.parent / "config.json").write_text(
        json.dumps({"_name_or_path": str(dense.parent), "max_position_embeddings": 200})
    )
    return model


@pytest.fixture(scope="session")
def half(tiny: Path) -> Path:
    """The same with float16 caches."""
    return rewrite(
        tiny.with_name("tiny.onnx"), tiny.with_name("half.onnx"), CONFIG.replace(cache_format="float16")
    ).path
