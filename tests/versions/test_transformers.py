"""The exporter with the oldest transformers it promises to work with (`make peers`), held to what that one computes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import tomllib
from support import hf_reference, peers, scenario_files

from deltallm_onnx.runtime import ops_library_path

TOLERANCE = 1e-4
CONVERTED = ("llama", "qwen3", "gemma2", "mistral", "gpt2", "phi3")
#: What transformers 4 computes in ways of its own, with words of the refusal.
REFUSED = {
    "longrope": "uses LongRoPE, which can be traced from transformers 5 on",
    "opt": "gives layer 0 an attention mask of another form",
    "stablelm": "does not use transformers' attention interface",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    peers.run("optimum", "older_transformers", [folder, *CONVERTED, *REFUSED])
    return folder


def test_it_is_the_oldest_version_promised(converted: Path) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    promised = [line for line in project["optional-dependencies"]["export"] if line.startswith("transformers")]
    major, minor, _ = (converted / "version.txt").read_text().split(".")
    assert promised == [f"transformers>={major}.{minor}"]


@pytest.mark.parametrize("name", CONVERTED)
def test_logits_equal_eager_attention(name: str, converted: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.register_custom_ops_library(str(ops_library_path()))
    model = converted / name / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    errors = hf_reference.largest_error(session, scenario_files.load(converted / name / "eager.npz"))
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, converted: Path) -> None:
    refusal = (converted / name / "refusal.txt").read_text()
    assert REFUSED[name] in refusal
    assert "\n" not in refusal
    assert not list((converted / name / "out").iterdir())
