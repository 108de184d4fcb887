"""scripts/demo.py, as `make demo` starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.tiny_decoder import tiny_tokenizer
from support.tiny_models import ARCHITECTURES, save_config, save_tiny

ROOT = Path(__file__).parents[2]


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/demo.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_tiny("llama", folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    letters = np.random.default_rng(41).choice([*"abcdefghijklmnopqrstuvwxyz ."], 1500)
    (folder / "validation.txt").write_text("".join(letters))
    return folder


def test_thresholds_are_calibrated_unless_a_profile_is_named(model: Path, tmp_path: Path) -> None:
    config = ARCHITECTURES["llama"]()
    config.max_position_embeddings = 230
    save_config(config, model)
    outcome = demo("--model", model, "--out", tmp_path / "out", "--budget", "kl=0.003", "--threads", 1)
    assert outcome.returncode == 0, outcome.stderr
    plan = json.loads((tmp_path / "out" / "delta.deltallm.json").read_text())
    assert plan["budget"]["text"] == "kl=0.003"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["window"] == plan["config"]["window"] == 128
    assert results["measured"]["delta_sparsity, scoring"][1] > 0
    assert "delta.deltallm.json" in outcome.stdout


def test_what_cannot_be_calibrated_is_said_and_refused_where_a_budget_was_asked_for(
    model: Path, tmp_path: Path
) -> None:
    """The exact window fills the context of 130 tokens."""
    outcome = demo("--model", model, "--out", tmp_path / "out", "--threads", 1)
    assert outcome.returncode == 0, outcome.stderr
    assert "not calibrated, and what the default thresholds cost" in " ".join(outcome.stdout.split())
    assert not (tmp_path / "out" / "delta.deltallm.json").exists()
    refused = demo("--model", model, "--out", tmp_path / "other", "--budget", "kl=0.003", "--threads", 1)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)


def test_a_budget_and_a_profile_are_one_too_many(model: Path, tmp_path: Path) -> None:
    outcome = demo("--model", model, "--out", tmp_path / "out", "--budget", "kl=0.01", "--profile", "paper")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("error: --budget asks for thresholds to be found")
    assert not (tmp_path / "out").exists()


def test_a_whole_demonstration(model: Path, tmp_path: Path) -> None:
    outcome = demo("--model", model, "--out", tmp_path / "out", "--profile", "paper", "--threads", 1)
    assert outcome.returncode == 0, outcome.stderr
    for word in ("dense:", "delta:", "decode tokens/s", "perplexity", "KL to dense", "delta_sparsity", "kv_bytes_read"):
        assert word in outcome.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["window"] == 6  # 5 % of the model's 130 positions
    measured = results["measured"]
    assert measured["KL to dense (nats/token)"][0] == 0
    assert measured["KL to dense (nats/token)"][1] > 0
    assert measured["delta_sparsity, scoring"][1] > 0
    assert measured["cache bytes/token in use"] == [2 * 2 * 2 * 10 * 4] * 2  # layers, K and V, KV heads, D, float32


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [("config.json", "There is no model in"), ("validation.txt", "Cannot read the text")],
)
def test_a_missing_file_is_one_sentence(model: Path, tmp_path: Path, missing: str, sentence: str) -> None:
    (model / missing).unlink()
    outcome = demo("--model", model, "--out", tmp_path / "out")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"error: {sentence}")
    assert outcome.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
