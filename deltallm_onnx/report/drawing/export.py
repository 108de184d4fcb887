"""Pictures as SVG to stand in an HTML page, and as PNG files."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from deltallm_onnx.report.drawing.theme import INK, VARIABLES, Picture, themed

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
#: Of a PNG, per inch: two screen pixels per point.
_RESOLUTION = 200
_PAPER = "#ffffff"


def to_svg(picture: Picture) -> str:
    """An <svg> element that takes the page's colours and fonts and the width it is given.

    Identifiers begin with the picture's name, so that several pictures may stand in one page.
    """
    import matplotlib as mpl  # noqa: PLC0415  # an extra

    stream = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with themed(), mpl.rc_context({"svg.hashsalt": picture.name}):
        picture.figure.savefig(stream, format="svg", metadata=nothing)
    root = ET.fromstring(stream.getvalue())  # noqa: S314  # matplotlib has just written it
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{picture.name}-title {picture.name}-desc")
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style") or (child.tag == f"{_SVG}defs" and _is_styling(child)):
                parent.remove(child)
    for element in root.iter():
        _adapt(element, picture.name)
    for place, (tag, text) in enumerate((("title", picture.title), ("desc", picture.description))):
        told = ET.Element(tag, {"id": f"{picture.name}-{tag}"})
        told.text = text
        root.insert(place, told)
    return ET.tostring(root, encoding="unicode")


def to_png(picture: Picture, folder: Path) -> Path:
    """Write `<name>.png` into a folder: dark on white, with its title."""
    path = folder / f"{picture.name}.png"
    with themed():
        heading = picture.figure.suptitle(picture.title, color=INK)
        picture.figure.savefig(path, format="png", dpi=_RESOLUTION, facecolor=_PAPER, metadata={"Software": None})
        heading.remove()
        picture.figure._suptitle = None  # noqa: SLF001  # matplotlib has no other way to take a title back
    return path


def _is_styling(definitions: ET.Element) -> bool:
    return all(child.tag == f"{_SVG}style" for child in definitions)


def _adapt(element: ET.Element, name: str) -> None:
    """Drop namespaces, which HTML does not need, keep identifiers apart, and let the page's style sheet colour."""
    element.tag = element.tag.removeprefix(_SVG)
    element.text = element.text if element.tag == "text" else None
    element.tail = None
    href = element.attrib.pop(_HREF, None)
    if href is not None:
        element.set("href", f"#{name}-{href[1:]}" if href.startswith("#") else href.replace("\n", ""))
    for key, value in element.attrib.items():
        if key == "id":
            adapted = f"{name}-{value}"
        elif key == "d":
            adapted = " ".join(value.split())
        else:
            adapted = value.replace("url(#", f"url(#{name}-")
        if key == "style":
            adapted = re.sub(r"\s*font-family:[^;]*;?", "", adapted)
            adapted = re.sub(r"(?<!-)font: ([\d.]+)px [^;]*", r"font-size: \1px", adapted)
        if key in ("style", "fill", "stroke"):
            for colour, variable in VARIABLES.items():
                adapted = adapted.replace(colour, f"var({variable})")
        element.set(key, adapted)
    if element.tag == "text" and "fill:" not in element.get("style", ""):
        element.set("style", f"fill: var(--ink); {element.get('style', '')}".strip())
