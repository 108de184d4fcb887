"""Where a model may come from, and every way a directory or a hub id can be wrong."""

import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import export_model, source


def refusal(model: str | Path, out: Path) -> str:
    before = sorted(out.iterdir())
    with pytest.raises(DeltaLLMError) as caught:
        export_model(model, out / "dense.onnx")
    assert sorted(out.iterdir()) == before
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def write_config(directory: Path, **content: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **content}))
    return directory


def write_weights(file: Path) -> None:
    safetensors.numpy.save_file({"x": np.zeros((3, 5), np.float32)}, file)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_missing_directory(tmp_path: Path, out: Path) -> None:
    assert "no model directory" in refusal(tmp_path / "nowhere", out)
    assert "no model directory" in refusal("./nowhere", out)


def test_a_file_instead_of_a_directory(tmp_path: Path, out: Path) -> None:
    write_weights(tmp_path / "model.safetensors")
    assert "give the directory" in refusal(tmp_path / "model.safetensors", out)


def test_no_config(tmp_path: Path, out: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "no config.json" in refusal(tmp_path / "model", out)


@pytest.mark.parametrize("content", ["{", "[1]", '{"no_type": 1}', "[" * 100_000])
def test_unusable_config(content: str, tmp_path: Path, out: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(content)
    assert "config.json" in refusal(tmp_path / "model", out)


def test_config_values_transformers_rejects(tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model", hidden_size="wide", num_attention_heads=6)
    write_weights(model / "model.safetensors")
    assert "Cannot use" in refusal(model, out)


def test_the_reason_transformers_gives_is_told(tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model", hidden_size=50, num_attention_heads=6)
    write_weights(model / "model.safetensors")
    assert "not a multiple of the number of attention heads" in refusal(model, out)


def test_no_weights(tmp_path: Path, out: Path) -> None:
    assert "model.safetensors is missing" in refusal(write_config(tmp_path / "model"), out)


def test_pickled_weights_are_never_opened(tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model")
    # unpickling this would write a file
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + bytes(out / "pwned") + b"'\ntR.")
    assert "only as pickles" in refusal(model, out)


def test_adapter(tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model")
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "merge it into its base model" in refusal(model, out)


@pytest.mark.parametrize("size", [0, 5, 40, 130])
def test_corrupt_safetensors(size: int, tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model")
    write_weights(model / "model.safetensors")
    whole = (model / "model.safetensors").read_bytes()
    assert size < len(whole)
    (model / "model.safetensors").write_bytes(whole[:size])
    assert "not a sound safetensors file" in refusal(model, out)


def test_missing_shard(tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model")
    shards = {"x": "model-00001-of-00002.safetensors", "y": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    write_weights(model / shards["x"])
    assert "lacks the shard model-00002-of-00002" in refusal(model, out)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "weights.bin"])
def test_shards_outside_the_directory(shard: str, tmp_path: Path, out: Path) -> None:
    model = write_config(tmp_path / "model")
    write_weights(tmp_path / "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert "not a safetensors file beside it" in refusal(model, out)


def test_incomplete_weights(tmp_path: Path, out: Path) -> None:
    sizes = {"vocab_size": 31, "hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 1}
    model = write_config(tmp_path / "model", num_attention_heads=2, **sizes)
    safetensors.numpy.save_file({"lm_head.weight": np.zeros((31, 12), np.float32)}, model / "model.safetensors")
    assert "has no weights for model.embed_tokens.weight" in refusal(model, out)


def test_weights_of_another_shape(tmp_path: Path, out: Path) -> None:
    sizes = {"vocab_size": 31, "hidden_size": 12, "intermediate_size": 17, "num_hidden_layers": 0}
    model = write_config(tmp_path / "model", num_attention_heads=2, **sizes)
    weights = {"lm_head.weight": (31, 13), "model.embed_tokens.weight": (31, 12), "model.norm.weight": (12,)}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in weights.items()}
    safetensors.numpy.save_file(zeros, model / "model.safetensors")
    assert "Cannot load the weights" in refusal(model, out)


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    text = refusal("nobody/nothing-of-this-name", out)
    assert "'nobody/nothing-of-this-name'" in text
    assert "check the name, the network and your access" in text


def test_hub_snapshots_hold_no_pickles_and_no_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, Any] = {}

    def snapshot(repo_id: str, **patterns: list[str]) -> str:
        asked.update(repo_id=repo_id, patterns=patterns)
        model = write_config(tmp_path / "snapshot")
        blob = tmp_path / "blob"
        write_weights(blob)
        (model / "model.safetensors").symlink_to(blob)  # as the hub's cache does
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    said: list[str] = []
    found = source.find_model("owner/name", said.append)
    assert found.model_type == "llama"
    assert said == ["Fetching owner/name from the hub"]
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "config.json",
            "model-1.safetensors",
            "tokenizer.model",
            "vocab.txt",
            "x.py",
            "pytorch_model.bin",
            "a.pt",
            "t.gguf",
            "consolidated.safetensors",
            "onnx/config.json",
        ],
        **asked["patterns"],
    )
    assert list(wanted) == ["config.json", "model-1.safetensors", "tokenizer.model", "vocab.txt"]
