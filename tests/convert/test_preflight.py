"""What is said before work starts where memory or disk are too small, and that the estimate is honest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file
from support.command_line import files_below
from support.tiny_models import exported, save_config, shared_directory
from transformers import LlamaConfig

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, WeightFormat, preflight, profile
from deltallm_onnx.export import loading
from deltallm_onnx.preflight import (
    BESIDE_DATA,
    BESIDE_WEIGHTS,
    StoredShape,
    export_disk,
    export_memory,
    stored_shapes,
    ternary_shapes,
)

CONFIG = profile("exact")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("llama", shared_directory(tmp_path_factory))


def refuse_to_load(*_: object) -> None:
    raise AssertionError("the weights were loaded")


def test_too_little_memory(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = stored_shapes([dense.parent / "model" / "model.safetensors"])
    needed = 4 * sum(shape.size for shape in shapes.values()) + BESIDE_WEIGHTS
    monkeypatch.setattr(loading, "load", refuse_to_load)
    monkeypatch.setattr(preflight, "available_memory", lambda: needed - 1)
    with pytest.raises(DeltaLLMError, match=r"needs up to 1 GB of memory, and 1 GB are available: close other"):
        deltallm_onnx.convert(dense.parent / "model", tmp_path / "out.onnx", CONFIG)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(preflight, "available_memory", lambda: needed)
    with pytest.raises(AssertionError, match="were loaded"):
        deltallm_onnx.convert(dense.parent / "model", tmp_path / "out.onnx", CONFIG)


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4"])
def test_too_little_disk_for_an_export(name: str, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = WeightFormat(name)  # type: ignore[arg-type]
    needed = export_disk(stored_shapes([dense.parent / "model" / "model.safetensors"]), weights)
    asked: list[Path] = []

    def free(folder: Path) -> int:
        asked.append(folder)
        return needed - 1

    monkeypatch.setattr(loading, "load", refuse_to_load)
    monkeypatch.setattr(preflight, "free_disk", free)
    # Told is the folder that the user named, and not the one in it that the files grow in.
    sentence = rf"takes up to 6\d\.\d+ MB on disk, and {re.escape(str(tmp_path))} has 6\d\.\d+ MB left"
    with pytest.raises(DeltaLLMError, match=sentence):
        deltallm_onnx.convert(dense.parent / "model", tmp_path / "out.onnx", CONFIG, weights=weights)
    assert not list(tmp_path.iterdir())
    # The staging folder lies in the output's: the same file system.
    assert [tmp_path in folder.parents for folder in asked] == [True]


@pytest.mark.parametrize("name", [None, "int4"])
def test_too_little_disk_for_a_rewrite(
    name: str | None, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = None if name is None else WeightFormat(name)  # type: ignore[arg-type]
    room = {"left": 10**9}
    monkeypatch.setattr(preflight, "free_disk", lambda _: room["left"])
    deltallm_onnx.rewrite(dense, tmp_path / "out.onnx", CONFIG, weights=weights)
    size = (tmp_path / "out.onnx.data").stat().st_size
    before = files_below(tmp_path)
    room["left"] = size - 1
    with pytest.raises(DeltaLLMError, match="rewritten model takes up to"):
        deltallm_onnx.rewrite(dense, tmp_path / "out.onnx", CONFIG, weights=weights)
    folder = tmp_path / "in"
    folder.mkdir()
    for suffix in ("", ".data"):
        (folder / f"dense.onnx{suffix}").write_bytes(dense.with_name(f"dense.onnx{suffix}").read_bytes())
    with pytest.raises(DeltaLLMError, match="rewritten model takes up to"):
        deltallm_onnx.rewrite(folder, tmp_path / "out", CONFIG, weights=weights)
    assert {path: data for path, data in files_below(tmp_path).items() if folder not in path.parents} == before


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4"])
def test_the_disk_estimate_is_enough_and_not_much_more(name: str, dense: Path, tmp_path: Path) -> None:
    weights = WeightFormat(name, *(() if "float" in name else (16, False)))  # type: ignore[arg-type]
    out = tmp_path / "out.onnx"
    deltallm_onnx.rewrite(dense, out, CONFIG, weights=weights)
    data = sum(len(tensor.raw_data) for tensor in onnx.load(out).graph.initializer)
    estimate = export_disk(stored_shapes([dense.parent / "model" / "model.safetensors"]), weights) - BESIDE_DATA
    assert data <= estimate + 4096  # constants of the graph
    assert estimate <= 1.3 * data


_EXPORT = """
import sys
from pathlib import Path
from deltallm_onnx.export import export_model
print(export_model(sys.argv[1], Path(sys.argv[2])).peak_rss_bytes)
"""


def test_the_memory_estimate_holds(tmp_path: Path) -> None:
    """An export of 17 million parameters in a process of its own."""
    config = LlamaConfig(
        vocab_size=17001,
        hidden_size=512,
        intermediate_size=1403,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=100,
        tie_word_embeddings=True,
    )
    save_config(config, tmp_path / "model")
    files = [tmp_path / "model" / "model.safetensors"]
    estimate = export_memory(stored_shapes(files))
    peak = subprocess.run(
        [sys.executable, "-c", _EXPORT, tmp_path / "model", tmp_path / "out.onnx"], capture_output=True, check=True
    ).stdout
    # The libraries alone take half of what the estimate leaves them.
    assert 0.4 * estimate <= int(peak) <= estimate


def test_what_headers_say(tmp_path: Path) -> None:
    save_file({"w": np.ones((3, 5), np.float16), "n": np.ones(7, np.float32)}, tmp_path / "a.safetensors")
    save_file({"packed": np.ones((3, 5), np.uint8), "n": np.ones(9, np.float32)}, tmp_path / "b.safetensors")
    shapes = stored_shapes([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    assert shapes == {
        "w": StoredShape((3, 5), is_float=True, item_bytes=2),
        "n": StoredShape((9,), is_float=True, item_bytes=4),
        "packed": StoredShape((3, 5), is_float=False, item_bytes=1),
    }
    assert export_memory(shapes) == 4 * 15 + 4 * 9 + 15 + BESIDE_WEIGHTS


def test_ternary_matrices_stay_codes() -> None:
    shapes = {
        "packed": StoredShape((30, 256), is_float=False, item_bytes=1),
        "model.layers.0.mlp.up_proj.weight": StoredShape((120, 256), is_float=True, item_bytes=2),
        "model.embed_tokens.weight": StoredShape((99, 256), is_float=True, item_bytes=2),
    }
    embedding = 4 * 99 * 256
    assert export_memory(ternary_shapes(shapes, 0)) - BESIDE_WEIGHTS == embedding + 2 * 4 * 120 * 256
    codes = export_memory(ternary_shapes(shapes, 2)) - BESIDE_WEIGHTS - embedding
    assert 2 * 120 * 256 / 4 <= codes <= 1.1 * 2 * 120 * 256 / 4


def groups(root: Path) -> Iterator[Path]:
    """A tree of control groups: a batch job in a container."""
    for name in ("", "batch", "batch/job"):
        folder = root / name
        folder.mkdir(exist_ok=True)
        yield folder


def test_limits_of_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, batch, job = groups(tmp_path)
    own = tmp_path / "own"
    monkeypatch.setattr(preflight, "_CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(preflight, "_OWN_CGROUPS", own)
    system = preflight.available_memory()  # no such file: no limit
    assert system is not None
    own.write_text("0::/batch/job\n")
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("12\n")
    (batch / "memory.max").write_text("5000\n")
    (batch / "memory.current").write_text("3000\n")
    (batch / "memory.stat").write_text("anon 1700\ninactive_file 700\nfile 900\n")
    assert preflight.available_memory() == 5000 - 3000 + 700
    (top / "memory.max").write_text("2600\n")
    (top / "memory.current").write_text("9000\n")
    assert preflight.available_memory() == 0
    # version 1, in a container that sees its own group as the root
    for file in (job, batch, top):
        for path in file.glob("memory.*"):
            path.unlink()
    own.write_text("12:cpu:/x\n5:memory:/docker/of/the/host\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("4000\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("1000\n")
    assert preflight.available_memory() == 3000
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    assert abs(preflight.available_memory() - system) < system / 2  # type: ignore[operator]  # known here


def test_the_command_says_one_sentence(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltallm_onnx.cli.app import run  # noqa: PLC0415 - beside its only use

    monkeypatch.setattr(preflight, "available_memory", lambda: 123)
    assert run(["convert", str(dense.parent / "model"), str(tmp_path / "out.onnx")]) == 2
    assert not list(tmp_path.iterdir())
    assert json.loads((dense.parent / "model" / "config.json").read_text())["model_type"] == "llama"
