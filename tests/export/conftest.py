from pathlib import Path

import pytest
from support import tiny_models


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache directory of `tiny_models.exported`."""
    return tiny_models.shared_directory(tmp_path_factory)
