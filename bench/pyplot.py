"""matplotlib, set up so that the same record gives the same SVG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError


def pyplot() -> Any:
    """The module matplotlib.pyplot.

    Raises:
        DeltaLLMError: without matplotlib.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  # an extra

        mpl.use("svg")
        from matplotlib import pyplot as plt  # noqa: PLC0415  # the same
    except ImportError as error:
        raise DeltaLLMError("The plot needs matplotlib: pip install '.[bench]'.") from error
    # No random identifiers.
    mpl.rcParams |= {"svg.hashsalt": "deltallm", "svg.fonttype": "none", "font.size": 9}
    return plt


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure without its date, and free it."""
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot().close(figure)
