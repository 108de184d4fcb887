from __future__ import annotations

from pathlib import Path

import pytest
from support.cpp_runner import CppRunner, native_runner
from support.tiny_decoder import save_tiny_decoder


@pytest.fixture(scope="session")
def runner() -> CppRunner:
    return native_runner()


@pytest.fixture(scope="session")
def dense_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_decoder(tmp_path_factory.mktemp("runner"))
