"""The page: it says what the JSON says, it is whole HTML, it loads nothing, and it runs nothing from anyone's files."""

from __future__ import annotations

import copy
import json
import re
import struct
from typing import Any

import pytest
from support.report_models import Element, ParsedPage, ReportModels, WrittenReport

from deltallm_onnx.report import ReportRequest, gather
from deltallm_onnx.report.drawing.pictures import draw
from deltallm_onnx.report.numbers import FORMS, at
from deltallm_onnx.report.page import HEADINGS, render

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;$x_1^2$"


@pytest.fixture(scope="session")
def page(report: WrittenReport) -> ParsedPage:
    return ParsedPage(report.html)


@pytest.fixture(scope="session")
def full(report: WrittenReport) -> dict[str, Any]:
    """The report's data with the parts that need other files."""
    data = copy.deepcopy(report.data)
    points = [
        {"kl": 0.01, "kv_bytes_per_token": 40.0, "delta_sparsity": 0.5, "on_front": True},
        {"kl": 0.02, "kv_bytes_per_token": 50.0, "on_front": False},
    ]
    source = {"kind": "study", "file": "study.json", "points": points}
    data["trade_off"] = {"saving": "kv_bytes_per_token", "sources": [source]}
    spread = {"median": 2.0, "lower": 1.5, "upper": 2.5}
    row = {"kind": "decode", "past_tokens": 64, "new_tokens": 1, "threads": 1, "name": "model", "milliseconds": spread}
    record: dict[str, Any] = dict.fromkeys(("suite", "subject", "cpu", "date", "load"))
    speedup = {"kind": "decode", "tokens": 64, "threads": 1, "speedup": 1.75}
    record |= {"file": "record.json", "benchmark": "two models", "rows": [row], "speedups": [speedup]}
    data["speeds"] = [record]
    reached = {"verification": {"kl": 0.0183, "delta_sparsity": 0.61, "kv_bytes_per_token": 44.5}}
    budget = {"metric": "kl", "limit": 0.02, "text": "kl=0.02", "ratio": False}
    data["calibration"] = {"file": "deltallm.json", "budget": budget, "reached": reached, "seed": 0}
    data["calibration"] |= {"own": True, "rules": {"0": "query"}, "notes": ["some note"]}
    data["calibration"] |= {"weights": {"name": "int4", "kl": 0.0421, "perplexity_increase": 0.0317}}
    return data


@pytest.fixture(scope="session")
def full_html(full: dict[str, Any]) -> str:
    return render(full, draw(full))


def _embedded(page: ParsedPage) -> dict[str, Any]:
    (script,) = page.all("script")
    assert script.attributes == {"type": "application/json", "id": "report-data"}
    data = json.loads(script.text)
    assert isinstance(data, dict)
    return data


def test_page_file_and_result_have_the_same_data(report: WrittenReport, page: ParsedPage) -> None:
    assert _embedded(page) == report.data == json.loads((report.folder / "report.json").read_text())


def test_every_number_is_where_the_json_has_it(full_html: str) -> None:
    page = ParsedPage(full_html)
    data = _embedded(page)
    shown = page.all("data")
    assert len(shown) > 150
    for element in shown:
        value = at(data, str(element.attributes["data-path"]))
        assert element.attributes["value"] == str(value)
        assert element.text in {form(value) for form in _forms_of(value)}, element
    parts = {str(element.attributes["data-path"]).split(".")[0] for element in shown}
    assert parts >= {*HEADINGS, "environment", "text"}


def test_table_cells_hold_nothing_but_data(full_html: str) -> None:
    """A cell beside the names of rows is a number of the JSON, a dash, or the number of a head."""
    cells = re.findall(r"<td[^>]*>(.*?)</td>", full_html)
    bare = [cell for cell in cells if not cell.startswith("<data ")]
    heads = {str(head) for head in range(3)}
    assert len(cells) > 150
    assert set(bare) <= {"–", *heads}


def test_numbers_are_written_in_few_forms() -> None:
    gap = "\u00a0"
    assert FORMS["bytes"](512) == f"512{gap}B"
    assert FORMS["bytes"](3_250_400) == f"3.25{gap}MB"
    assert FORMS["plain bytes"](1280.0) == f"1\u202f280{gap}B"
    assert FORMS["plain bytes"](98.123) == f"98.1{gap}B"
    assert FORMS["digits"](0.000123456) == "0.000123"
    assert FORMS["digits"](2.5e-7) == "2.50e-07"
    assert FORMS["digits"](0) == "0"
    assert FORMS["share"](0.7649) == f"76.5{gap}%"
    assert FORMS["change"](-0.00321) == f"−0.32{gap}%"
    assert FORMS["count"](1234567) == "1\u202f234\u202f567"
    assert FORMS["times"](12.04) == f"12.0{gap}×"
    assert FORMS["token"](" a\n") == "␣a⏎"


def test_identifiers_are_unique_and_lead_somewhere(page: ParsedPage) -> None:
    identifiers = [str(e.attributes["id"]) for e in page.elements if "id" in e.attributes]
    assert len(identifiers) == len(set(identifiers))
    for element in page.elements:
        for target in _targets(element):
            assert target in identifiers, (element.tag, target)


def test_nothing_is_loaded(report: WrittenReport, page: ParsedPage) -> None:
    assert "http:" not in report.html
    assert "https:" not in report.html
    policy = next(e.attributes["content"] for e in page.all("meta") if e.attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert not {e.tag for e in page.elements} & {"link", "iframe", "object", "embed", "audio", "video", "form", "base"}
    for element in page.elements:
        assert not [name for name in element.attributes if name.startswith("on") or name in ("src", "srcset")]
        href = element.attributes.get("href") or "#"
        assert href.startswith("#" if element.tag != "image" else "data:image/png;base64,")
    styles = [e.text for e in page.all("style")] + [str(e.attributes.get("style", "")) for e in page.elements]
    for style in styles:
        assert "@import" not in style
        assert not re.search(r"url\((?!#)", style)


def test_pictures_tell_what_they_show(page: ParsedPage, report: WrittenReport) -> None:
    pictures = page.all("svg")
    assert len(pictures) == sum(len(found) for found in draw(report.data).values())
    titles = {str(e.attributes["id"]): e.text for e in page.elements if e.tag in ("title", "desc") and e.attributes}
    for picture in pictures:
        assert picture.attributes["role"] == "img"
        title, description = str(picture.attributes["aria-labelledby"]).split()
        assert titles[title]
        assert len(titles[description]) > len(titles[title])
    for table in page.all("table"):
        assert table.attributes["aria-label"]


def test_colours_are_the_style_sheet_s(report: WrittenReport, page: ParsedPage) -> None:
    """Ink and lines follow the reader's light or dark; a variable that is used is defined in both."""
    (style,) = page.all("style")
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", report.html))
    blocks = re.findall(r":root \{([^}]*)\}", style.text)
    assert len(blocks) == 2
    for block in blocks:
        assert used <= set(re.findall(r"(--[a-z0-9-]+):", block))
    assert {"--ink", "--line", "--series-1", "--series-2"} <= used
    drawn = "".join(re.findall(r"<svg.*?</svg>", report.html, re.DOTALL))
    assert "#1b1f24" not in drawn
    for text in (e for e in page.elements if e.tag == "text"):
        assert "fill:" in str(text.attributes["style"])


def test_what_is_missing_is_said(models: ReportModels) -> None:
    """A model alone: every part that needs more names what would add it."""
    data = gather(ReportRequest(models.element))
    html = render(data, draw(data))
    page = ParsedPage(html)
    assert not page.all("svg")
    options = {"quality": "--text", "attention": "--text", "trade_off": "--study", "speeds": "--record"}
    for name in HEADINGS:
        (section,) = [e for e in page.all("section") if e.attributes.get("id") == name]
        if name != "model":
            assert "Not in this report." in section.text
            assert options.get(name, "--") in section.text
    assert data["left_out"].keys() == HEADINGS.keys() - {"model"}


def test_hostile_names_stay_text(full: dict[str, Any], full_html: str) -> None:
    """Of files, tokens, contenders, metadata: whatever they hold, the page has no element more."""
    data = json.loads(_with_hostile_names(json.dumps(full)))
    html = render(data, draw(data))
    page = ParsedPage(html)
    assert _outside_pictures(page) == _outside_pictures(ParsedPage(full_html))
    assert not page.all("img")
    assert _embedded(page) == data
    assert html.count("</script>") == 1
    told = next(e for e in page.all("h1"))
    assert HOSTILE in told.text
    assert sum(HOSTILE in e.text for e in page.all("text")) > 0, "no picture shows the name"


def test_png_files_are_pictures(report: WrittenReport) -> None:
    files = [path for path in report.files if path.suffix == ".png"]
    names = {picture.name for found in draw(report.data).values() for picture in found}
    assert {path.stem for path in files} == names
    for path in files:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">II", content[16:24])
        assert width == 880
        assert 300 < height < 1700


def test_the_same_data_give_the_same_page(report: WrittenReport) -> None:
    again = render(report.data, draw(report.data))
    assert again == report.html


def _forms_of(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [FORMS["text"], FORMS["token"]]
    return [form for name, form in FORMS.items() if name != "token"]


def _outside_pictures(page: ParsedPage) -> list[str]:
    """Tags in order. A long name leaves a picture less room, and so fewer ticks."""
    inside = {"svg", "g", "path", "use", "defs", "clippath", "rect", "image", "text"}
    return [element.tag for element in page.elements if element.tag not in inside]


def _targets(element: Element) -> list[str]:
    href = element.attributes.get("href") or ""
    found = [href[1:]] if href.startswith("#") else []
    for name in ("style", "clip-path"):
        found += re.findall(r"url\(#([^)]*)\)", element.attributes.get(name) or "")
    return found + (element.attributes.get("aria-labelledby") or "").split()


def _with_hostile_names(text: str) -> str:
    """Put the hostile name in place of names that come from files."""
    for key in ("file", "folder", "name", "query_token", "key_token", "sample", "benchmark", "cpu", "date"):
        replacement = json.dumps(HOSTILE).replace("\\", "\\\\")
        text = re.sub(rf'"{key}": "(?:[^"\\]|\\.)*"', f'"{key}": {replacement}', text)
    return text
