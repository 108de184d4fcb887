"""What an export leaves on disk, what it tells, and what it costs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy
from support import tiny_models
from tokenizers import Tokenizer, models, pre_tokenizers

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import LayerReport, export_model, sidecars, source, tracing

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mistral with a tokenizer, special tokens and a chat template."""
    directory = tmp_path_factory.mktemp("model")
    tiny_models.save_tiny("mistral", directory)
    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", "a", "b", "c"])}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (directory / "chat_template.jinja").write_text("{{ messages }}")
    (directory / "modeling_evil.py").write_text("raise SystemExit")
    generation = {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_files_report_and_progress(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []

    def refused(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    said: list[str] = []
    report = export_model(str(model), tmp_path / "m.onnx", progress=said.append)
    assert not attempts, "a local directory needs no network"
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == [
        "chat_template.jinja",
        "config.json",
        "genai_config.json",
        "generation_config.json",
        "m.onnx",
        "m.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(file.name for file in report.files) == written
    assert report.path == tmp_path / "m.onnx"
    assert report.model_type == "mistral"
    assert report.has_tokenizer
    assert report.layers == (LayerReport(6, 2, 10, pytest.approx(10**-0.5), 0.0, 9),) * 2
    parameters = 83 * 48 * 2 + 2 * (48 * (60 + 20 + 20) + 60 * 48 + 3 * 48 * 97 + 2 * 48) + 48
    assert report.parameters == parameters
    assert 50e6 < report.peak_rss_bytes < 100e9
    assert report.seconds > 0
    assert report.notes == ()
    assert [line.split()[0] for line in said] == ["Loading", "Checking", "Tracing", "Writing", "Exported"]
    assert "peak memory" in said[-1]
    assert capfd.readouterr() == ("", ""), "nothing but progress speaks"
    for name in ("tokenizer.json", "generation_config.json", "config.json"):
        assert (tmp_path / name).read_bytes() == (model / name).read_bytes()
    assert json.loads((tmp_path / "genai_config.json").read_text())["model"]["eos_token_id"] == [2, 5]


def test_genai_config(exports: Path) -> None:
    path = tiny_models.exported("mistral", exports)
    config = json.loads(path.with_name("genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    graph = ir.load(path).graph
    inputs, outputs = ({value.name for value in values} for values in (graph.inputs, graph.outputs))
    names = [*decoder["inputs"].values()]
    spelled = {name % layer if "%d" in name else name for name in names for layer in range(2)}
    assert spelled == inputs
    assert {n % i if "%d" in n else n for n in decoder["outputs"].values() for i in range(2)} == outputs
    assert decoder["filename"] == "dense.onnx"
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads")
    assert [decoder[size] for size in sizes] == [10, 48, 6, 2, 2]
    model_part = {key: value for key, value in config["model"].items() if key != "decoder"}
    assert model_part == {
        "type": "decoder",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "context_length": 130,
        "vocab_size": 83,
    }
    assert config["search"]["past_present_share_buffer"] is False
    assert config["search"]["max_length"] == 130


def test_a_model_without_tokenizer_is_fine(exports: Path) -> None:
    folder = tiny_models.exported("llama", exports).parent
    assert not (folder / "tokenizer.json").exists()
    assert (folder / "genai_config.json").exists()


def test_notes_on_what_a_model_asks_of_its_runtime() -> None:
    models = {
        name: SimpleNamespace(config=tiny_models.ARCHITECTURES[name]()) for name in ("llama", "mixtral", "gemma2")
    }
    plain, other = LayerReport(6, 2, 10, 0.3, 0.0, 0), LayerReport(6, 2, 14, 0.3, 0.0, 0)
    capped = LayerReport(6, 2, 10, 0.3, 2.0, 0)
    assert sidecars.limits(models["llama"], [plain, plain]) == []
    assert "mixture of experts" in sidecars.limits(models["mixtral"], [plain, plain])[0]
    assert "ONNX Runtime 1.27" in sidecars.limits(models["gemma2"], [plain, capped])[0]
    assert "Layers differ" in sidecars.limits(models["llama"], [plain, other])[0]


@pytest.mark.parametrize("moment", ["tracing", "writing weights", "writing side files"])
def test_an_error_leaves_nothing_behind(
    moment: str, model: Path, exports: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if moment == "tracing":
        monkeypatch.setattr(tracing.torch.export, "export", full)
    else:
        traced = ir.load(tiny_models.exported("mistral", exports))
        monkeypatch.setattr(tracing, "trace", lambda *_: traced)
        monkeypatch.setattr(*((ir, "save") if moment == "writing weights" else (sidecars, "write_genai_config")), full)
    (tmp_path / "m.onnx").write_text("the old one")
    with pytest.raises(DeltaLLMError, match="No space left on device"):
        export_model(model, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "the old one"


def test_unwritable_outputs_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*_: Any) -> None:
        raise AssertionError("the model was looked at first")

    monkeypatch.setattr(source, "find_model", too_late)
    with pytest.raises(DeltaLLMError, match="does not exist"):
        export_model(tmp_path, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(DeltaLLMError, match="is a directory"):
        export_model(tmp_path, tmp_path)
    read_only = Path("/proc")  # not writable by root either
    if read_only.is_dir():
        with pytest.raises(DeltaLLMError, match="Cannot write to"):
            export_model(tmp_path, read_only / "m.onnx")


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints when it runs `code` with `tests` importable."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_does_not_import_torch_and_a_missing_torch_is_a_sentence(tmp_path: Path) -> None:
    code = """
import importlib.util, sys
from pathlib import Path
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.export import export_model
assert not {"torch", "transformers"} & set(sys.modules), "imported at once"
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
try:
    export_model("any", Path(sys.argv[1]) / "m.onnx")
except DeltaLLMError as error:
    print(error)
"""
    said = run_python(code, str(tmp_path))
    assert said == "Exporting a model needs torch: install deltallm-onnx[export].\n"


def test_peak_memory_is_near_the_size_of_the_float32_model(tmp_path: Path) -> None:
    """A float16 checkpoint, nearly all of it in two matrices: neither it nor a second float32 copy stays in memory."""
    sizes = {"vocab_size": 61003, "hidden_size": 512, "intermediate_size": 37, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": False}
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **heads}))
    shapes = {
        "model.embed_tokens.weight": (61003, 512),
        "lm_head.weight": (61003, 512),
        "model.norm.weight": (512,),
        "model.layers.0.input_layernorm.weight": (512,),
        "model.layers.0.post_attention_layernorm.weight": (512,),
        "model.layers.0.self_attn.q_proj.weight": (32, 512),
        "model.layers.0.self_attn.k_proj.weight": (8, 512),
        "model.layers.0.self_attn.v_proj.weight": (8, 512),
        "model.layers.0.self_attn.o_proj.weight": (512, 32),
        "model.layers.0.mlp.gate_proj.weight": (37, 512),
        "model.layers.0.mlp.up_proj.weight": (37, 512),
        "model.layers.0.mlp.down_proj.weight": (512, 37),
    }
    random = np.random.default_rng(5)
    weights = {name: random.random(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, model / "model.safetensors")
    code = """
import sys
from pathlib import Path
import onnxscript, torch, transformers
from deltallm_onnx.export import export_model
from deltallm_onnx.export.memory import peak_rss_bytes
before = peak_rss_bytes()
report = export_model(sys.argv[1], Path(sys.argv[2]))
print(4 * report.parameters, report.peak_rss_bytes - before)
"""
    size, peak = map(int, run_python(code, str(model), str(tmp_path / "m.onnx")).split())
    assert size > 249e6
    # tracing takes about 230 MB with any model; the checkpoint, if it stayed mapped, would take 125 MB more
    assert size < peak < size + 290e6, f"{peak / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights"
    stored = ir.load(tmp_path / "m.onnx").graph.initializers["lm_head.weight_transposed"].const_value
    assert stored.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(stored.numpy(), weights["lm_head.weight"].astype(np.float32).T)
