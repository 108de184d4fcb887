"""The option that rewrites the golden graphs."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write tests/golden/*.txt anew instead of comparing with them"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    # pytest knows the option only where this folder is named on its command line, as `make golden` does.
    return bool(request.config.getoption("--update-golden", default=False))
