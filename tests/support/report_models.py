"""Models, texts and finished reports for the tests of deltallm_onnx.report."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from support.tiny_decoder import POSITIONS, save_tiny_decoder

from deltallm_onnx import DeltaConfig, rewrite
from deltallm_onnx.report import ReportRequest
from deltallm_onnx.report.layer_inputs import LayerInputs

_LETTERS = "abcdefghijklmnopqrstuvwxyz ."

WINDOW, SINKS = 5, 4


def letters(count: int, seed: int = 3) -> str:
    """A text of so many tokens of the tiny tokenizer."""
    return "".join(np.random.default_rng(seed).choice(list(_LETTERS), count))


@dataclasses.dataclass(frozen=True)
class ReportModels:
    """A dense model, rewritten forms of it, and a text, in one folder."""

    folder: Path
    dense: Path
    element: Path
    int8: Path
    text: Path


def save_report_models(folder: Path) -> ReportModels:
    """Write the models; about half of what each codes is held."""
    dense = save_tiny_decoder(folder)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": POSITIONS}))
    base = DeltaConfig(window=WINDOW, sinks=SINKS)
    element = base.replace(granularity="element", threshold=0.7, cache_format="float32", prefill="delta", refresh=11)
    rewrite(dense, folder / "element.onnx", element)
    rewrite(dense, folder / "int8.onnx", base.replace(threshold=1.1, cache_format="int8"))
    text = folder / "text.txt"
    text.write_text(letters(700))
    return ReportModels(folder, dense, folder / "element.onnx", folder / "int8.onnx", text)


@dataclasses.dataclass(frozen=True)
class WrittenReport:
    """A report and what it was asked for."""

    request: ReportRequest
    data: dict[str, Any]
    html: str
    files: list[Path]
    folder: Path


def random_layer(seed: int, **changes: Any) -> LayerInputs:
    """A layer of 6 query heads, 2 KV heads of 4 channels and 23 tokens; `changes` go to the settings or the fields."""
    random = np.random.default_rng(seed)
    Hq, Hkv, T, D = 6, 2, 23, 4
    settings = {
        "num_heads": Hq,
        "kv_num_heads": Hkv,
        "scale": 0.0,
        "softcap": 0.0,
        "local_window_size": -1,
        "delta_window": 3,
        "sinks": 2,
        "granularity": "element",
        "row_rule": "relative",
        "refresh": 0,
        "v_skip": 0.0,
        "prefill": "exact",
        "cache_format": "float32",
    }
    fields: dict[str, Any] = {
        "layer": 7,
        "query": random.standard_normal((Hq, T, D)).astype(np.float32),
        "key": random.standard_normal((Hkv, T, D)).astype(np.float32).cumsum(axis=1) / 2,
        "value": random.standard_normal((Hkv, T, D)).astype(np.float32),
        "threshold": np.array([0.5, 1.0], np.float32),
        "row_weight": None,
        "attention_bias": None,
        "head_sink": None,
        "statistics": np.zeros((Hkv, 8), np.int64),
        "output": np.zeros((T, Hq * D), np.float32),
    }
    for name, value in changes.items():
        (fields if name in fields else settings)[name] = value
    return LayerInputs(settings=settings, **fields)


#: Elements of HTML that have no end tag.
_VOID = {"meta", "br", "img", "link", "hr", "input"}


@dataclasses.dataclass
class Element:
    """An element of a parsed page."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""


class ParsedPage(HTMLParser):
    """Elements of a page in order of their start; a tag that is not closed where it should be raises ValueError."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        if self._open:
            raise ValueError(f"<{self._open[-1].tag}> is never closed")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the element."""
        if len(dict(attrs)) != len(attrs):
            raise ValueError(f"<{tag}> has an attribute twice: {attrs}")
        element = Element(tag, dict(attrs))
        self.elements.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember the element, which SVG closes at once."""
        self.elements.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the innermost element, which it must be."""
        if not self._open or self._open[-1].tag != tag:
            raise ValueError(f"</{tag}> closes <{self._open[-1].tag if self._open else ''}>")
        self._open.pop()

    def handle_data(self, data: str) -> None:
        """Add text to everything that is open."""
        for element in self._open:
            element.text += data

    def all(self, tag: str) -> list[Element]:
        """The elements with this tag."""
        return [element for element in self.elements if element.tag == tag]
