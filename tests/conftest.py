"""What tests of every folder may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from support import architecture_table

# onnxruntime writes a device id below the home folder as soon as it is imported, unless it is told before.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-table", action="store_true", help="write the cells of models/README.md instead of comparing with them"
    )


@pytest.fixture
def architecture_cell(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hand in one cell of models/README.md: (architecture, source, difference=…, reason=…)."""
    updating = bool(request.config.getoption("--update-table"))

    def hand_in(architecture: str, source: str, difference: float | None = None, reason: str | None = None) -> None:
        assert source in architecture_table.SOURCES
        assert difference is not None or reason is not None, "an empty cell needs its reason"
        cell = architecture_table.Cell(None if difference is None else float(difference), reason)
        (architecture_table.update if updating else architecture_table.check)(architecture, source, cell)

    return hand_in
