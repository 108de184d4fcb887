"""How pictures look: one set of colours for paper and PNG, which the page turns into variables of its style sheet."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

from deltallm_onnx.errors import DeltaLLMError

#: Width of a picture in inches. An SVG unit is a point, so that 9-point letters are 10 pixels high on a phone.
WIDTH = 4.4

INK, MUTED, GRID = "#1b1f24", "#5b6470", "#d4d9df"
#: Okabe and Ito's colours for all kinds of colour vision, in the order they are used.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7a7a7a")
#: Beside colour, so that grey paper tells lines apart too.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
#: Even in lightness, and readable with every kind of colour vision.
SEQUENTIAL, DIVERGING = "viridis", "PuOr"

#: Colour in a picture → variable of the style sheet.
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    **{colour: f"--series-{i}" for i, colour in enumerate(SERIES, 1)},
}

_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "figure.titlesize": 10,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    # A name from a file is never a formula.
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A drawn figure.

    Attributes:
        name: file name without suffix, and prefix of identifiers: letters, digits and hyphens.
        title: what it shows, in a few words.
        description: what a reader who cannot see it is told.
        figure: a matplotlib Figure, without its title.
    """

    name: str
    title: str
    description: str
    figure: Any


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Draw within this block: matplotlib's settings are the report's, and are what they were afterwards.

    Raises:
        DeltaLLMError: without matplotlib.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise DeltaLLMError("The report needs matplotlib and jinja2: pip install 'deltallm-onnx[report]'.") from error
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Names from files may have letters that the measuring font lacks; the reader's browser has its own fonts.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        yield


def new_figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of the common width and its axes.

    Args:
        height: in inches.
        rows: of axes.
        columns: of axes.
        options: of matplotlib's `Figure.subplots`.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # an extra

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def logarithmic(axes: Any, which: str = "y") -> None:
    """A logarithmic axis with plain numbers; matplotlib's own labels are formulas.

    Args:
        axes: matplotlib's Axes.
        which: "x" or "y".
    """
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = sorted(axis.get_view_interval())
    # Fewer than two powers of ten: their multiples say more, of which a few have room.
    told = {1, 2, 5} if high > 4 * low else set(range(1, 10))
    few = high < 30 * low

    def minor(value: float, _: int) -> str:
        return f"{value:g}" if few and round(value / 10 ** math.floor(math.log10(value))) in told else ""

    axis.set_minor_formatter(minor)


def legend_below(axes: Any, columns: int = 2) -> None:
    """A legend under the axes, where it hides no line."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, borderaxespad=0.2)
