"""`rewrite` on files and folders: what is written, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from support.attention_models import GraphBuilder, attention_model, exporter_mask, random_feeds, run_model

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.runtime import ops_library_path

CONFIG = profile("exact")
WIDTH = 30  # 6 query heads of 5 channels


def weighted(*sizes: int) -> onnx.ModelProto:
    """Two attention layers and weights of so many rows [n, 30], multiplied with layer 0's query."""

    def add_weights(g: GraphBuilder) -> None:
        for index, rows in enumerate(sizes):
            data = np.random.default_rng(index).standard_normal((rows, WIDTH))
            weight = g.constant(data, np.float32)
            product = g.node("MatMul", weight, g.node("Transpose", "query.0", perm=[0, 2, 1]))
            g.output(product, TensorProto.FLOAT, ["batch", rows, "sequence"])

    return attention_model(exporter_mask(4), layers=2, layout="flat", changed=add_weights)


def save_external(model: onnx.ModelProto, path: Path, *, one_file: bool = True) -> Path:
    path.parent.mkdir(exist_ok=True)
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="weights.onnx.data" if one_file else None,
        size_threshold=1000,
    )
    return path


def outputs(path: Path, feeds: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    return run_model(onnx.load(path), feeds)


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("one_file", [True, False])
def test_external_weights(tmp_path: Path, *, one_file: bool) -> None:
    model = weighted(41, 67)
    source = save_external(model, tmp_path / "in" / "dense.onnx", one_file=one_file)
    out = tmp_path / "out"
    out.mkdir()
    report = deltallm_onnx.rewrite(source, out / "delta.onnx", CONFIG)
    assert listing(out) == ["delta.onnx", "delta.onnx.data"]
    assert report.files == (out / "delta.onnx", out / "delta.onnx.data")
    assert (out / "delta.onnx.data").stat().st_size == (41 + 67) * WIDTH * 4
    feeds = random_feeds(model)
    expected, actual = outputs(source, feeds), outputs(out / "delta.onnx", feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5, rtol=0, err_msg=name)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert ir.load(out / "delta.onnx").metadata_props["deltallm.source_sha256"] == sha256


def test_weights_inside_the_file_stay_inside(tmp_path: Path) -> None:
    onnx.save_model(weighted(41), tmp_path / "dense.onnx")
    deltallm_onnx.rewrite(tmp_path / "dense.onnx", tmp_path / "delta.onnx", CONFIG)
    assert listing(tmp_path) == ["delta.onnx", "dense.onnx"]


def test_weights_are_not_loaded(tmp_path: Path) -> None:
    rows = 400_000
    source = save_external(weighted(11), tmp_path / "in" / "dense.onnx")
    model = onnx.load(source, load_external_data=False)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
    weight.dims[0] = rows
    del weight.external_data[1:]
    with (tmp_path / "in" / "weights.onnx.data").open("wb") as file:
        file.truncate(rows * WIDTH * 4)
    source.write_bytes(model.SerializeToString())
    tracemalloc.start()
    deltallm_onnx.rewrite(source, tmp_path / "delta.onnx", CONFIG)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "delta.onnx.data").stat().st_size == rows * WIDTH * 4
    assert peak < rows * WIDTH  # a quarter of the weights


def test_an_existing_output_is_replaced(tmp_path: Path) -> None:
    onnx.save_model(weighted(41), tmp_path / "dense.onnx")
    (tmp_path / "delta.onnx").write_text("old")
    deltallm_onnx.rewrite(tmp_path / "dense.onnx", tmp_path / "delta.onnx", CONFIG)
    assert onnx.load(tmp_path / "delta.onnx").graph.node


def edit_reference(change: Callable[[dict[str, str]], None]) -> Callable[[Path], None]:
    """Change where the model says its weights lie."""

    def edit(source: Path) -> None:
        model = onnx.load(source, load_external_data=False)
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)
        entries = {entry.key: entry.value for entry in weight.external_data}
        change(entries)
        del weight.external_data[:]
        for key, value in entries.items():
            weight.external_data.add(key=key, value=value)
        source.write_bytes(model.SerializeToString())

    return edit


def link_the_data(source: Path) -> None:
    data = source.parent / "weights.onnx.data"
    data.rename(source.parent.parent / "elsewhere.bin")
    data.symlink_to(source.parent.parent / "elsewhere.bin")


def link_the_folder(source: Path) -> None:
    elsewhere = source.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (source.parent / "weights.onnx.data").rename(elsewhere / "weights.onnx.data")
    (source.parent / "sub").symlink_to(elsewhere)
    edit_reference(lambda entries: entries.update(location="sub/weights.onnx.data"))(source)


def hard_link_the_data(source: Path) -> None:
    os.link(source.parent / "weights.onnx.data", source.parent.parent / "elsewhere.bin")


def cut_the_model(source: Path) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 2 // 3])


def cut_the_data(source: Path) -> None:
    data = source.parent / "weights.onnx.data"
    data.write_bytes(data.read_bytes()[:-4])


def no_graph(source: Path) -> None:
    source.write_bytes(b"")


def text(source: Path) -> None:
    source.write_text("this is not a model\n" * 50)


def wrong_shape(source: Path) -> None:
    model = onnx.load(source, load_external_data=False)
    next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL).dims[0] = 40
    source.write_bytes(model.SerializeToString())


BAD_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "absolute": (edit_reference(lambda e: e.update(location="/etc/passwd")), "'/etc/passwd'"),
    "parent": (edit_reference(lambda e: e.update(location="../elsewhere.bin")), "'../elsewhere.bin'"),
    "hidden parent": (edit_reference(lambda e: e.update(location="a/../../elsewhere.bin")), "leaves the model's"),
    "windows drive": (edit_reference(lambda e: e.update(location="C:\\weights.onnx.data")), "not a relative path"),
    "no location": (edit_reference(lambda e: e.pop("location")), "not a relative path"),
    "missing": (edit_reference(lambda e: e.update(location="other.bin")), "other.bin is not there"),
    "offset behind the end": (edit_reference(lambda e: e.update(offset="4096")), "ends at byte"),
    "negative offset": (edit_reference(lambda e: e.update(offset="-4")), "'-4'"),
    "offset in words": (edit_reference(lambda e: e.update(offset="many")), "'many'"),
    "length behind the end": (edit_reference(lambda e: e.update(length="999999")), "ends at byte 999999"),
    "length of another shape": (wrong_shape, "4800 bytes large by its shape"),
    "symbolic link": (link_the_data, "symbolic link"),
    "symbolic link to a folder": (link_the_folder, "symbolic link"),
    "hard link": (hard_link_the_data, "hard link"),
    "model cut short": (cut_the_model, "cut short"),
    "data cut short": (cut_the_data, "ends at byte"),
    "empty": (no_graph, "holds no graph"),
    "text": (text, "not an ONNX model"),
    "not there": (Path.unlink, "There is no file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    spoil, words = BAD_FILES[name]
    source = save_external(weighted(41), tmp_path / "in" / "dense.onnx")
    spoil(source)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DeltaLLMError) as refusal:
        deltallm_onnx.rewrite(source, out / "delta.onnx", CONFIG)
    assert words in str(refusal.value)
    assert not list(out.iterdir())


def test_output_paths_that_are_refused(tmp_path: Path) -> None:
    source = save_external(weighted(41), tmp_path / "in" / "dense.onnx")
    (source.parent / "link.onnx").symlink_to(source)
    (tmp_path / "file").write_text("in the way")
    os.mkfifo(tmp_path / "pipe")
    before = listing(tmp_path)
    for out, words in (
        (source, "would replace"),
        (source.parent / "link.onnx", "would replace"),
        (source.parent / ".." / "in" / "dense.onnx", "would replace"),
        (source.parent / "weights.onnx", "would replace"),
        (source.parent / "weights.onnx.data", "does not end in"),
        (tmp_path / "missing" / "delta.onnx", "does not exist"),
        (tmp_path / "pipe", "is no ordinary file"),
        (tmp_path / "file" / "delta.onnx", "does not exist"),
        (source.parent, "is a directory"),
    ):
        with pytest.raises(DeltaLLMError, match=words):
            deltallm_onnx.rewrite(source, out, CONFIG)
        assert listing(tmp_path) == before


def test_the_source_data_is_not_replaced_by_the_output_data(tmp_path: Path) -> None:
    """delta.onnx would write delta.onnx.data, where this source keeps its weights."""
    source = save_external(weighted(41), tmp_path / "dense.onnx")
    (tmp_path / "weights.onnx.data").rename(tmp_path / "delta.onnx.data")
    edit_reference(lambda entries: entries.update(location="delta.onnx.data"))(source)
    with pytest.raises(DeltaLLMError, match="would replace"):
        deltallm_onnx.rewrite(source, tmp_path / "delta.onnx", CONFIG)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save_external(weighted(41), tmp_path / "in" / "dense.onnx")
    save = ir.save

    def save_half(model: ir.Model, path: Path, **options: object) -> None:
        save(model, path, **options)  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ir, "save", save_half)
    with pytest.raises(DeltaLLMError, match="No space left on device"):
        deltallm_onnx.rewrite(source, tmp_path / "delta.onnx", CONFIG)
    assert listing(tmp_path) == ["in", "in/dense.onnx", "in/weights.onnx.data"]


def test_a_rewritten_file_is_refused(tmp_path: Path) -> None:
    onnx.save_model(weighted(41), tmp_path / "dense.onnx")
    deltallm_onnx.rewrite(tmp_path / "dense.onnx", tmp_path / "delta.onnx", CONFIG)
    with pytest.raises(DeltaLLMError, match="already rewritten"):
        deltallm_onnx.rewrite(tmp_path / "delta.onnx", tmp_path / "again.onnx", CONFIG)
    assert not (tmp_path / "again.onnx").exists()


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    """Single bytes of a model changed, inserted or left out: rewritten or refused, and never anything else."""
    source = save_external(weighted(11), tmp_path / "in" / "dense.onnx")
    random, whole = np.random.default_rng(11), source.read_bytes()
    outcomes = {"written": 0, "refused": 0}
    for _ in range(250):
        data = bytearray(whole)
        place = int(random.integers(len(data)))
        data[place : place + int(random.integers(2))] = bytes(random.integers(256, size=random.integers(2)).tolist())
        source.write_bytes(data)
        try:
            deltallm_onnx.rewrite(source, tmp_path / "delta.onnx", CONFIG)
            outcomes["written"] += 1
        except DeltaLLMError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes
    assert listing(tmp_path) == ["delta.onnx", "delta.onnx.data", "in", "in/dense.onnx", "in/weights.onnx.data"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as onnxruntime-genai reads it."""
    source = save_external(weighted(41), tmp_path / "in" / "model.onnx").parent
    (source / "tokenizer.json").write_text("{}")
    (source / "extra").mkdir()
    (source / "extra" / "notes.txt").write_text("kept")
    (source / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"filename": "model.onnx"}}}))
    return source


def test_folder(folder: Path, tmp_path: Path) -> None:
    report = deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG)
    assert listing(tmp_path / "out") == [
        "extra",
        "extra/notes.txt",
        "genai_config.json",
        ops_library_path().name,
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
    ]
    assert report.path == tmp_path / "out" / "model.onnx"
    feeds = random_feeds(weighted(41))
    expected, actual = outputs(folder / "model.onnx", feeds), outputs(report.path, feeds)
    np.testing.assert_allclose(actual["output.1"], expected["output.1"], atol=1e-5, rtol=0)


def test_folder_with_other_models_keeps_their_data(folder: Path, tmp_path: Path) -> None:
    (folder / "other.onnx").write_bytes((folder / "model.onnx").read_bytes())
    deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG)
    copied = listing(tmp_path / "out")
    assert {"other.onnx", "weights.onnx.data", "model.onnx", "model.onnx.data"} <= set(copied)
    assert (tmp_path / "out" / "other.onnx").read_bytes() == (folder / "other.onnx").read_bytes()


def test_folders_that_are_refused(folder: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("kept")
    before = listing(tmp_path)
    for out, words in ((full, "not empty"), (folder / "out", "lies inside"), (full / "mine.txt", "is a file")):
        with pytest.raises(DeltaLLMError, match=words):
            deltallm_onnx.rewrite(folder, out, CONFIG)
        assert listing(tmp_path) == before


def test_folder_without_a_clear_model(folder: Path, tmp_path: Path) -> None:
    config = folder / "genai_config.json"
    for content, words in (
        ('{"model": {"decoder": {"filename": "../model.onnx"}}}', "a file in the folder is needed"),
        ('{"model": {"decoder": {"filename": 3}}}', "not a text"),
        ('{"model": {"decoder": {"filename": "absent.onnx"}}}', "names the model 'absent.onnx', which is not there"),
        ("{", "cannot be read as JSON"),
    ):
        config.write_text(content)
        with pytest.raises(DeltaLLMError, match=words):
            deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG)
    config.unlink()
    (folder / "second.onnx").write_bytes(b"")
    with pytest.raises(DeltaLLMError, match=r"2 \.onnx files \(.*\): name one of them\."):
        deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_link_among_the_side_files_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not for others")
    (folder / "merges.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(DeltaLLMError, match="symbolic link"):
        deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_a_link_is_refused(tmp_path: Path) -> None:
    source = save_external(weighted(41), tmp_path / "in" / "dense.onnx")
    (tmp_path / "link.onnx").symlink_to(source)
    with pytest.raises(DeltaLLMError, match=r"link\.onnx is a symbolic link"):
        deltallm_onnx.rewrite(tmp_path / "link.onnx", tmp_path / "delta.onnx", CONFIG)
    assert not (tmp_path / "delta.onnx").exists()
