"""--weights and what belongs to it, as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from safetensors.numpy import load_file, save_file
from support.command_line import Outcome, files_below
from support.tiny_models import save_tiny

Run = Callable[..., Outcome]


def test_rewrite_stores_weights(dense: Path, deltallm: Run) -> None:
    out = dense.with_name("out.onnx")
    options = ("--weights", "int8", "--block-size", "16", "--asymmetric", "--accuracy-level", "0")
    text = deltallm("rewrite", dense, out, *options)
    assert (text.code, text.err) == (0, "")
    assert "weights stored as int8 (blocks of 16, asymmetric, accuracy level 0)" in text.out
    assert "relative RMS error of the weights: " in text.out
    assert "Embeddings, and a head tied to them, are symmetric all the same.\n" in text.out
    products = [node for node in onnx.load(out).graph.node if node.op_type == "MatMulNBits"]
    assert products
    for node in products:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"], len(node.input)) == (8, 16, 4)
        assert "accuracy_level" not in attributes
    report = deltallm("rewrite", dense, out, *options, "--json").json["weights"]
    assert report["format"] == {"name": "int8", "block_size": 16, "symmetric": False, "accuracy_level": 0}
    assert len(report["stored"]) >= len(products)
    assert 0 < report["relative_rms"] < 0.01


def test_defaults_are_fast_and_right(dense: Path, deltallm: Run) -> None:
    out = dense.with_name("out.onnx")
    for options, level, inputs in (((), 4, 3), (("--asymmetric",), None, 4)):
        outcome = deltallm("rewrite", dense, out, "--weights", "int4", *options)
        assert outcome.code == 0
        assert ("look up asymmetric 4-bit rows wrongly" in outcome.out) == bool(options)
        node = next(
            node for node in onnx.load(out).graph.node if node.op_type == "MatMulNBits" and len(node.input) == inputs
        )
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        assert (attributes["bits"], attributes["block_size"]) == (4, 32)
        assert attributes.get("accuracy_level") == level


def test_the_stored_model_runs(dense: Path, deltallm: Run) -> None:
    out = dense.with_name("out.onnx")
    assert deltallm("rewrite", dense, out, "--weights", "int8", "--cache-format", "float32").code == 0
    outcome = deltallm("run", out, "--prompt", "hello world", "--max-new-tokens", "5")
    assert outcome.code == 0, outcome
    assert outcome.out.strip()


REWRITE = ("rewrite", "tiny.onnx", "new.onnx")
CONVERT = ("convert", "hf", "new.onnx")
REFUSED = {
    "unknown format": ((*REWRITE, "--weights", "int3"), "weights is 'int3': choose one of"),
    "no format": ((*REWRITE, "--weights", ""), "weights is '': choose one of"),
    "block size": ((*REWRITE, "--weights", "int4", "--block-size", "48"), "block size is 48: choose one of 16, 32"),
    "block size negative": ((*REWRITE, "--weights", "int4", "--block-size", "-32"), "block size is -32"),
    "block size no number": (
        (*REWRITE, "--weights", "int4", "--block-size", "many"),
        "block-size is 'many': give a whole number",
    ),
    "level": ((*REWRITE, "--weights", "int4", "--accuracy-level", "2"), "accuracy level is 2: choose one of 0, 4"),
    "wrong results": ((*REWRITE, "--weights", "int4", "--asymmetric", "--accuracy-level", "4"), "wrong results"),
    "block size of float16": (
        (*REWRITE, "--weights", "float16", "--block-size", "32"),
        "float16 weights have no block",
    ),
    "block size alone": ((*REWRITE, "--block-size", "32"), "--block-size is for quantised weights"),
    "symmetry alone": ((*REWRITE, "--symmetric"), "--symmetric is for quantised weights"),
    "level alone": ((*REWRITE, "--accuracy-level", "4"), "--accuracy-level is for quantised weights"),
    "quantised already": (("rewrite", "small.onnx", "new.onnx", "--weights", "int8"), "quantised already"),
    "float32 again": (("rewrite", "small.onnx", "new.onnx", "--weights", "float32"), "quantised already"),
    "weights missing": ((*REWRITE[:1], "parted.onnx", "new.onnx", "--weights", "int4"), "parted.data is not there"),
    "convert: unknown format": ((*CONVERT, "--weights", "int5"), "weights is 'int5'"),
    "convert: block size": ((*CONVERT, "--weights", "int8", "--block-size", "8"), "block size is 8"),
    "convert: no weights": (("convert", "bare", "new.onnx", "--weights", "int4"), "model.safetensors is missing"),
    "convert: shard missing": (("convert", "shards", "new.onnx", "--weights", "int4"), "lacks the shard"),
    "convert: tensor missing": (("convert", "gap", "new.onnx", "--weights", "int4"), "1 missing"),
}


@pytest.fixture
def folder(dense: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's folder, entered, with models in it that cannot be stored in another format."""
    folder = dense.parent
    monkeypatch.chdir(folder)
    # Rewritten models are refused for that: this one is only quantised.
    small = onnx.load(dense)
    small.graph.node.append(
        onnx.helper.make_node("MatMulNBits", ["x", "w", "s"], ["unused"], domain="com.microsoft", K=16, N=1)
    )
    onnx.save(small, folder / "small.onnx")
    onnx.save(
        onnx.load(dense), folder / "parted.onnx", save_as_external_data=True, location="parted.data", size_threshold=0
    )
    (folder / "parted.data").unlink()
    save_tiny("llama", folder / "hf")
    for name in ("bare", "shards", "gap"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((folder / "hf" / "config.json").read_bytes())
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = load_file(folder / "hf" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "gap" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_refusals(folder: Path, deltallm: Run) -> None:
    before = files_below(folder)
    for name, (arguments, words) in REFUSED.items():
        outcome = deltallm(*arguments)
        assert outcome.code == 2, (name, outcome)
        *steps, error = outcome.err.splitlines()
        assert words in error, (name, outcome.err)
        assert error.startswith("error: "), name
        assert steps in ([], ["Loading gap (llama)"]), (name, outcome.err)
        assert outcome.out == "", name
        assert files_below(folder) == before, name
