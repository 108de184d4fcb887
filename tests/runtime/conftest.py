from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny_decoder import save_tiny_decoder


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose presents are fed back as pasts (standard Attention)."""
    return save_tiny_decoder(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def in_place_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with an operator of ONNX Runtime's own that updates caches in place."""
    return save_tiny_decoder(tmp_path_factory.mktemp("in_place"), grouped_query=True)
