"""`convert` into a folder that holds a model already: its own files are replaced, another model's are not."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import files_below
from support.genai_folders import read_config
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, save_tiny_decoder

import deltallm_onnx
from deltallm_onnx import DeltaConfig, DeltaLLMError

CONFIG = DeltaConfig(threshold=0.5, window=9, sinks=2, cache_format="float32")
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
Convert = Callable[..., tuple[str, ...]]


@pytest.fixture
def checkpoints(tmp_path: Path) -> dict[str, Path]:
    """Two folders as Hugging Face's, as far as the folder of a result can tell them apart."""
    found = {}
    for name in ("cat", "dog"):
        found[name] = tmp_path / name
        found[name].mkdir()
        for file in FILES:
            (found[name] / file).write_text(json.dumps({"model_type": "llama", "of": name}))
    return found


@pytest.fixture
def convert(checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Convert:
    """Convert one of them, with a stand-in for the export; the notes that come back."""
    dense = save_tiny_decoder(tmp_path / "dense")

    def export(model: str | Path, out: Path, **_: object) -> SimpleNamespace:
        out.write_bytes(dense.read_bytes())
        for file in checkpoints[Path(model).name].glob("*.json"):
            (out.parent / file.name).write_bytes(file.read_bytes())
        decoder = {
            "filename": out.name,
            "head_size": HEAD_SIZE,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": KV_HEADS,
        }
        (out.parent / "genai_config.json").write_text(json.dumps({"model": {"decoder": decoder}}))
        return SimpleNamespace(path=out, notes=(), parameters=5, peak_rss_bytes=7, weights=None)

    monkeypatch.setattr(importlib.import_module("deltallm_onnx.export"), "export_model", export)
    return lambda model, out: deltallm_onnx.convert(model, out, CONFIG, copy_library=False).notes


def test_one_model_twice(checkpoints: dict[str, Path], convert: Convert, tmp_path: Path) -> None:
    """The configuration of onnxruntime-genai can name one of them."""
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(2):
        assert not [note for note in convert(checkpoints["cat"], out / "a.onnx") if "named" in note]
    renamed = [note for note in convert(checkpoints["cat"], out / "b.onnx") if "named" in note]
    assert len(renamed) == 1
    assert renamed[0].startswith(f"{out / 'genai_config.json'} named a.onnx and names b.onnx now: onnxruntime-genai")
    assert read_config(out)["model"]["decoder"]["filename"] == "b.onnx"
    (out / "b.onnx").unlink()
    assert not [note for note in convert(checkpoints["cat"], out / "a.onnx") if "named" in note]


@pytest.mark.parametrize("kept", FILES)
@pytest.mark.parametrize("from_hub", [False, True])
def test_two_models(
    checkpoints: dict[str, Path], convert: Convert, tmp_path: Path, kept: str, *, from_hub: bool
) -> None:
    """One file that differs is enough. What a hub's name stands for is known after the export only."""
    for file in set(FILES) - {kept}:
        (checkpoints["dog"] / file).write_bytes((checkpoints["cat"] / file).read_bytes())
    out = tmp_path / "out"
    out.mkdir()
    convert(checkpoints["cat"], out / "a.onnx")
    before = files_below(tmp_path)
    with pytest.raises(DeltaLLMError) as refusal:
        convert("dog" if from_hub else checkpoints["dog"], out / "b.onnx")
    sentence = f"{out / kept} belongs to a.onnx and would be replaced: give each model a folder of its own."
    assert str(refusal.value) == sentence
    assert files_below(tmp_path) == before


def test_a_folder_is_refused_before_the_export(
    checkpoints: dict[str, Path], convert: Convert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    convert(checkpoints["cat"], out / "a.onnx")
    calls: list[object] = []
    monkeypatch.setattr(importlib.import_module("deltallm_onnx.export"), "export_model", calls.append)
    with pytest.raises(DeltaLLMError, match="would be replaced"):
        convert(checkpoints["dog"], out / "b.onnx")
    assert not calls


def test_a_model_is_replaced_by_another_of_its_name(
    checkpoints: dict[str, Path], convert: Convert, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("cat", "dog"):
        convert(checkpoints[name], out / "a.onnx")
        assert (out / "tokenizer.json").read_bytes() == (checkpoints[name] / "tokenizer.json").read_bytes()


def test_a_checkpoint_is_no_place_for_another(checkpoints: dict[str, Path], convert: Convert) -> None:
    convert(checkpoints["cat"], checkpoints["cat"] / "a.onnx")
    with pytest.raises(DeltaLLMError, match=r"dog/config\.json belongs to another model and would be replaced"):
        convert(checkpoints["cat"], checkpoints["dog"] / "a.onnx")


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"decoder": {"filename": 5}}}', "[" * 100_000])
def test_a_configuration_that_names_nothing(
    checkpoints: dict[str, Path], convert: Convert, tmp_path: Path, text: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "genai_config.json").write_text(text)
    assert not [note for note in convert(checkpoints["cat"], out / "a.onnx") if "named" in note]
    assert read_config(out)["model"]["decoder"]["filename"] == "a.onnx"


def test_a_result_is_named_as_a_model(checkpoints: dict[str, Path], convert: Convert, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    for out in (tmp_path / "out", tmp_path / "out.bin"):
        with pytest.raises(DeltaLLMError, match=rf"{out.name} does not end in \.onnx: give the name of the \.onnx"):
            convert(checkpoints["cat"], out)
    assert files_below(tmp_path) == before
    convert(checkpoints["cat"], tmp_path / "OUT.ONNX")
