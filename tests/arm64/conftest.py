from __future__ import annotations

import pytest
from support.arm64 import CPUS


@pytest.fixture(scope="module", params=CPUS)
def cpu(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
