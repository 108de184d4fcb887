"""Small models written out as text, and what the tests of the diff ask of a result."""

from __future__ import annotations

import onnx
import onnx.parser

from deltallm_onnx.diff import Change, Detail, GraphDiff

_HEAD = '<ir_version: 10, opset_import: ["" : 21, "test.diff" : 1]>'


def written_model(text: str) -> onnx.ModelProto:
    """A model in ONNX's text form, without its header."""
    return onnx.parser.parse_model(f"{_HEAD} {text}")


def only_change(result: GraphDiff) -> Change:
    """The one change there is."""
    assert len(result.changes) == 1, result.to_text()
    return result.changes[0]


def change_of(section: str, action: str, before: str, after: str, *details: tuple[str, str, str]) -> Change:
    """A change in the main graph that is not about a node."""
    return Change(section, action, (), "", before, after, tuple(Detail(*detail) for detail in details))
