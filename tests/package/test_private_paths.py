"""Folders of this machine are cut out of configurations and graphs, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltallm_onnx.package import PackageRequest, package_model
from deltallm_onnx.package.private_paths import clear_graph, without_paths, write_clean_json
from deltallm_onnx.runtime import DecoderModel, generate

#: Nothing with a slash can be a path.
TEXT = st.text(st.characters(blacklist_characters="/\\:"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
)


@settings(max_examples=60, deadline=None)
@given(JSON)
def test_what_is_no_path_stays(value: object) -> None:
    assert without_paths(value) == value


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/me/models/small", "small"),
        ("/home/me/", "me"),
        ("C:\\Users\\me\\small.onnx", "small.onnx"),
        ("D:/models/small", "small"),
        ("/", "/"),
        ("//", "//"),
        ("/s", "/s"),
        ("</s>", "</s>"),
        ("owner/name", "owner/name"),
        ("https://host/owner/name", "https://host/owner/name"),
        ("{% if a %}/b/c/d", "{% if a %}/b/c/d"),
        ("/a/b\n{{ c }}", "/a/b\n{{ c }}"),
        ("a: b", "a: b"),
    ],
)
def test_paths(text: str, kept: str) -> None:
    assert without_paths({"name": [text, {"inner": text}]}) == {"name": [kept, {"inner": kept}]}


def test_bytes_stay_where_there_is_nothing_to_cut(tmp_path: Path) -> None:
    source, copy = tmp_path / "a.json", tmp_path / "b.json"
    source.write_bytes(b'{"b":1.0,\r\n "a": "\\u00e9"}')
    assert not write_clean_json(source, copy)
    assert copy.read_bytes() == source.read_bytes()


def test_a_text_that_utf8_cannot_hold(tmp_path: Path) -> None:
    source, copy = tmp_path / "a.json", tmp_path / "b.json"
    source.write_text('{"half": "\\ud800", "path": "/home/me/small"}')
    assert write_clean_json(source, copy)
    assert json.loads(copy.read_bytes()) == {"half": "\ud800", "path": "small"}


def test_notes_in_a_graph(tiny: Path, tmp_path: Path) -> None:
    """As torch leaves them: where in whose files a node was made."""
    folder = tmp_path / "model"
    folder.mkdir()
    proto = onnx.load(tiny)
    proto.graph.node[0].doc_string = f'File "{folder}/train.py", line 3'
    proto.graph.node[1].doc_string = "kept"
    proto.graph.node[2].metadata_props.add(key="stack_trace", value=f'File "{folder}/train.py", line 4')
    proto.graph.node[2].metadata_props.add(key="name", value="kept too")
    proto.metadata_props.add(key="made.in", value=str(folder))
    before = len(proto.metadata_props)
    onnx.save(proto, folder / "model.onnx")
    calibration = {"text": {"name": f"{folder}/book.txt"}, "layers": []}
    (folder / "model.deltallm.json").write_text(json.dumps(calibration))
    shutil.copyfile(tiny.with_name("tokenizer.json"), folder / "tokenizer.json")

    result = package_model(PackageRequest(folder / "model.onnx", "linux-x64", tmp_path / "package"))
    packaged = onnx.load(tmp_path / "package" / "model.onnx")
    assert [node.doc_string for node in packaged.graph.node[:2]] == ["", "kept"]
    assert [entry.key for entry in packaged.graph.node[2].metadata_props] == ["name"]
    assert len(packaged.metadata_props) == before - 1
    cut = json.loads((tmp_path / "package" / "model.deltallm.json").read_text())
    assert cut["text"]["name"] == "book.txt"
    assert any("Notes in model.onnx" in note for note in result.notes)
    assert any("model.deltallm.json were cut" in note for note in result.notes)
    for path in (tmp_path / "package").rglob("*"):
        assert not path.is_file() or str(folder).encode() not in path.read_bytes(), path
    ids = [3, 4, 5]
    expected = generate(DecoderModel(tiny), ids, max_new_tokens=9).tokens
    assert generate(DecoderModel(tmp_path / "package" / "model.onnx"), ids, max_new_tokens=9).tokens == expected


def test_notes_in_subgraphs_and_functions() -> None:
    """Wherever a node may stand, and nowhere else."""

    def node(place: str) -> onnx.NodeProto:
        return onnx.helper.make_node("Identity", ["a"], ["b"], doc_string=f"/home/me/{place}.py")

    inner = onnx.helper.make_graph([node("inner")], "inner", [], [])
    branch = onnx.helper.make_graph([onnx.helper.make_node("If", ["c"], ["d"], then_branch=inner)], "branch", [], [])
    graph = onnx.helper.make_graph([onnx.helper.make_node("If", ["c"], ["d"], else_branch=branch)], "main", [], [])
    opsets = [onnx.helper.make_opsetid("", 20)]
    function = onnx.helper.make_function("own", "f", ["a"], ["b"], [node("function")], opsets)
    model = onnx.helper.make_model(graph, functions=[function], opset_imports=opsets)
    found = model.SerializeToString()
    assert not clear_graph(model, ["/home/you"])
    assert model.SerializeToString() == found
    assert clear_graph(model, ["/home/me"])
    assert b"/home/me" not in model.SerializeToString()
    function.node[0].ClearField("doc_string")
    inner.node[0].ClearField("doc_string")
    branch.node[0].attribute[0].g.CopyFrom(inner)
    graph.node[0].attribute[0].g.CopyFrom(branch)
    assert model == onnx.helper.make_model(graph, functions=[function], opset_imports=opsets)
