"""The report as one HTML page that loads nothing: pictures, tables and the data behind them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.report.drawing.export import to_svg
from deltallm_onnx.report.drawing.theme import Picture
from deltallm_onnx.report.numbers import cell
from deltallm_onnx.report.tables import tables

_FOLDER = Path(__file__).parent
_TEMPLATE, _STYLE = "page.html.jinja", "page.css"

#: Section → its heading, in the order of the page.
HEADINGS = {
    "quality": "Quality by position",
    "sparsity": "Sparsity by layer and head",
    "attention": "Attention maps",
    "runs": "Run lengths",
    "cache": "Cache bytes",
    "trade_off": "Quality against savings",
    "speeds": "Recorded times",
    "calibration": "Calibration",
    "model": "The model",
}


def render(data: Mapping[str, Any], pictures: Mapping[str, list[Picture]]) -> str:
    """The page.

    Whatever comes from files or from a tokenizer is escaped; pictures and the style sheet are our own.

    Args:
        data: what `gather` returned.
        pictures: what `draw` made of it.

    Raises:
        DeltaLLMError: without jinja2.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # an extra
        from markupsafe import Markup  # noqa: PLC0415  # the same
    except ImportError as error:
        raise DeltaLLMError("The report needs matplotlib and jinja2: pip install 'deltallm-onnx[report]'.") from error
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    own = {
        "style": Markup((_FOLDER / _STYLE).read_text(encoding="utf-8")),  # noqa: S704  # our own file
        "json": Markup(embedded(data)),  # noqa: S704  # no character of it ends a script element
        "pictures": {
            part: [
                {"name": drawn.name, "title": drawn.title, "svg": Markup(to_svg(drawn))}  # noqa: S704  # serialised XML
                for drawn in found
            ]
            for part, found in pictures.items()
        },
    }
    return environment.get_template(_TEMPLATE).render(
        data=data,
        headings=HEADINGS,
        tables=tables(data),
        cell=functools.partial(cell, data),
        last=len(data["cache"]["points"]) - 1 if data["cache"] else 0,
        **own,
    )


def embedded(data: Mapping[str, Any]) -> str:
    """JSON for a script element: what could end it, or begin a comment, is written as escapes."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
