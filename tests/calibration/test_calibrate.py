"""Whole calibrations of a small model."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx import DeltaConfig, DeltaLLMError, rewrite
from deltallm_onnx.calibration.api import Corpus, calibrate
from deltallm_onnx.calibration.budget import parse_budget
from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.plan_file import load_plan
from deltallm_onnx.calibration.request import Request
from deltallm_onnx.calibration.result import Calibration
from deltallm_onnx.calibration.search import UnreachableError
from deltallm_onnx.calibration.text import read_text, split_text
from deltallm_onnx.counters import Counters
from deltallm_onnx.evaluation import compare
from deltallm_onnx.runtime import DecoderModel, TextTokenizer

ROOT = Path(__file__).parents[2]
WINDOW_TOKENS, WINDOW, SINKS = 64, 9, 2


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    path = save_tiny_decoder(tmp_path / "model")
    letters = np.random.default_rng(41).choice([*"abcdefghijklmnopqrstuvwxyz ."], 3000)
    (path.parent / "text.txt").write_text("".join(letters))
    return path


def request(budget: str, *, effort: str = "short", **changes: Any) -> Request:
    settings = {"cache_format": "int8", "window": WINDOW, "sinks": SINKS}
    own = {name: changes.pop(name) for name in list(changes) if name in DeltaConfig.__dataclass_fields__}
    config = DeltaConfig(**{**settings, **own})
    return Request(parse_budget(budget), config, effort=effort, threads=1, **changes)


def run(dense: Path, wanted: Request, name: str = "deltallm.json", **changes: Any) -> Calibration:
    corpus = Corpus((dense.parent / "text.txt",), window_tokens=WINDOW_TOKENS, windows=24)
    return calibrate(dense, dense.parent / name, wanted, corpus, **changes)


@pytest.mark.parametrize(
    "settings",
    [
        {"cache_format": "int8"},
        {"cache_format": "float32", "granularity": "element", "refresh": 7},
        {"cache_format": "float16", "v_skips": (0.0, 1e-3, 0.9)},
        {"cache_format": "int4", "windows": (8, 30)},
    ],
    ids=["int8 rows", "elements", "float16 and v_skip", "int4, two windows"],
)
def test_its_numbers_are_those_of_the_model_it_makes(dense: Path, settings: dict[str, Any]) -> None:
    """The plan in the file, written into a model by `rewrite`, scored by the evaluation on the same windows."""
    found = run(dense, request("kl=0.004", **settings))
    config, plan = load_plan(dense.parent / "deltallm.json")
    assert config == found.config
    assert [layer.to_dict() for layer in plan.layers] == [layer.to_dict() for layer in found.plan.layers]
    rewrite(dense, dense.parent / "delta.onnx", config.replace(prefill="delta"), plan=plan)
    models = [DecoderModel(path, threads=1) for path in (dense, dense.parent / "delta.onnx")]
    text = dense.parent / "text.txt"
    parts = split_text(
        read_text([text]),
        TextTokenizer(dense.parent),
        name="t",
        window_tokens=WINDOW_TOKENS,
        context=None,
        windows=24,
    )
    for windows, reached in ((parts.search, found.calibration), (parts.verification, found.verification)):
        reference, score = compare(*models, windows)
        # Float32 sums in another order; a decision at a threshold would show in the counters.
        assert reached.measured.kl == pytest.approx(score.kl_to_reference, rel=1e-3, abs=1e-6)
        assert reached.measured.perplexity == pytest.approx(score.perplexity, rel=1e-5)
        assert reached.dense.perplexity == pytest.approx(reference.perplexity, rel=1e-5)
        expected: Counters | None = score.counters
        assert expected is not None
        counters = reached.measured.counters
        for name in ("delta_total", "delta_zero", "qk_macs_skipped", "pv_macs_skipped"):
            assert getattr(counters, name) == getattr(expected, name), name


@pytest.mark.parametrize("budget", ["kl=0.004", "delta_sparsity=0.5", "kv_bytes=4x"])
def test_a_budget_is_kept_and_used_up_on_the_search_part(dense: Path, budget: str) -> None:
    found = run(dense, request(budget))
    wanted = found.budget
    value = wanted.value(found.calibration.measured, found.calibration.dense)
    assert wanted.met(value)
    assert value == pytest.approx(wanted.limit, rel=0.15)


def test_the_file_says_everything_and_nothing_else_is_left(dense: Path) -> None:
    before = {path.name for path in dense.parent.iterdir()}
    found = run(dense, request("kl=0.004", seed=5))
    assert {path.name for path in dense.parent.iterdir()} - before == {"deltallm.json"}
    data = json.loads((dense.parent / "deltallm.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert (data["format"], data["version"], data["seed"]) == ("deltallm-calibration", 1, 5)
    assert data["budget"]["text"] == "kl=0.004"
    assert len(data["model"]["sha256"]) == len(data["text"]["sha256"]) == 64
    assert data["text"]["windows"] == {"sensitivity": 2, "search": 14, "verification": 8}
    reached = data["reached"]["verification"]
    assert reached["kl_interval"][0] < reached["kl"] < reached["kl_interval"][1]
    assert reached["tokens"] == 8 * WINDOW_TOKENS
    assert "kv_bytes_read" not in reached, "no token was decoded"
    assert {(curve["layer"], *curve["heads"]) for curve in data["sensitivity"]} == {
        (layer, head) for layer in range(2) for head in range(3)
    }
    assert len(data["search"]) >= 3


def measured_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Digests of what is read from now on."""
    keys: list[str] = []

    def watch(name: str) -> None:
        read = getattr(ModelMeter, name)

        @functools.wraps(read)
        def counted(self: Any, reference: Any, count: int, config: Any, plan: Any) -> Any:
            keys.append(f"{name} {len(reference.windows)} {config.window} {plan.sha256}")
            return read(self, reference, count, config, plan)

        monkeypatch.setattr(ModelMeter, name, counted)

    watch("_read")
    watch("_read_errors")
    return keys


def test_it_is_repeatable_and_goes_on_without_measuring_twice(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = measured_keys(monkeypatch)
    journal = dense.parent / "impossible.json.journal"
    with pytest.raises(UnreachableError):
        run(dense, request("kv_bytes=900x"), "impossible.json")
    assert not (dense.parent / "impossible.json").exists()
    curves = len(keys)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + curves

    keys.clear()
    whole = run(dense, request("kl=0.004"), "whole.json")
    needed = set(keys)
    keys.clear()
    # The curves are there from the other budget, but for what a kill took: three lines and a half.
    (dense.parent / "again.json.journal").write_bytes(b"".join(lines[:-4]) + lines[-4][:99])
    again = run(dense, request("kl=0.004"), "again.json")
    assert set(keys) < needed
    assert len(keys) == len(set(keys))
    assert len(keys) <= len(needed) - curves + 4 + 2
    documents = [json.loads((dense.parent / f"{name}.json").read_text()) for name in ("whole", "again")]
    for key in ("layers", "config", "search", "sensitivity", "text", "model"):
        assert documents[0][key] == documents[1][key], key
    assert not (dense.parent / "again.json.journal").exists()
    assert whole.verification.measured.kl == again.verification.measured.kl


def test_a_killed_process_goes_on(dense: Path) -> None:
    out = dense.parent / "killed.json"
    journal = dense.parent / "killed.json.journal"
    options = ["--text", dense.parent / "text.txt", "--window-tokens", WINDOW_TOKENS, "--window", WINDOW]
    options += ["--sinks", SINKS, "--threads", 1, "--budget", "kl=0.004", "--out", out]
    code = "from deltallm_onnx.cli import main; main()"
    command = [sys.executable, "-c", code, "calibrate", *map(str, [dense, *options])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    left = journal.read_bytes().count(b"\n")
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert not journal.exists()
    tried = json.loads(out.read_text())
    assert left > 20
    fresh = subprocess.run(
        [*command[:-1], str(dense.parent / "fresh.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert fresh.returncode == 0, fresh.stderr
    assert tried["layers"] == json.loads((dense.parent / "fresh.json").read_text())["layers"]


def test_float_caches_get_one_row_rule_and_packed_ones_may_mix(dense: Path) -> None:
    rules = ("query", "relative", "query-relative", "absolute")
    found = run(dense, request("kl=0.004", cache_format="float32", rules=rules))
    assert len({layer.row_rule for layer in found.plan.layers}) == 1
    rewrite(dense, dense.parent / "delta.onnx", found.config, plan=found.plan)  # which would refuse a mixture


def test_more_effort_measures_more(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = measured_keys(monkeypatch)
    run(dense, request("kl=0.004"))
    short = len(keys)
    keys.clear()
    run(dense, request("kl=0.004", effort="full"))
    assert len(keys) > 2 * short


def test_a_wide_interval_and_a_missed_budget_are_told(dense: Path) -> None:
    found = run(dense, request("ppl=+0.5%"))
    assert found.verification.perplexity_interval is not None
    low, high = found.verification.perplexity_interval
    assert high - low > 0.005
    assert f" [{low:+.2%}, {high:+.2%}]" in found.lines[4]
    assert any("is wider than the budget itself" in line for line in found.lines)


@pytest.mark.parametrize("budget", ["kl=0.004", "kv_bytes=4x"])
def test_one_window_of_verification_gives_no_interval(dense: Path, budget: str) -> None:
    corpus = Corpus((dense.parent / "text.txt",), window_tokens=WINDOW_TOKENS, windows=3)
    found = calibrate(dense, dense.parent / "one.json", request(budget), corpus)
    for reached in json.loads((dense.parent / "one.json").read_text())["reached"].values():
        assert reached["kl_interval"] is None
        assert reached["perplexity_increase_interval"] is None
    assert "on 1 other window of 64 tokens (one window gives no interval)" in found.lines[2]
    assert not any("[" in line for line in found.lines), "no brackets without an interval"
    note = "note: one window of verification gives no interval of kl: measure on more text before relying on it."
    assert (note in found.lines) == (budget == "kl=0.004"), "counters are not estimated"


@pytest.mark.parametrize(
    ("budget", "sentence"),
    [
        (
            "kl=1e-9",
            r"The budget kl=1e-9 cannot be met with window 9, 2 sinks and int8 caches: the best reachable is kl=",
        ),
        ("kv_bytes=900x", r"the best reachable is kv_bytes=\d"),
    ],
)
def test_an_impossible_budget_says_the_best_reachable(dense: Path, budget: str, sentence: str) -> None:
    with pytest.raises(UnreachableError, match=sentence):
        run(dense, request(budget))
    assert not (dense.parent / "deltallm.json").exists()


def test_a_rewritten_model_is_refused(dense: Path) -> None:
    rewrite(dense, dense.parent / "delta.onnx", DeltaConfig(cache_format="float32"))
    with pytest.raises(DeltaLLMError, match="already"):
        calibrate(
            dense.parent / "delta.onnx",
            dense.parent / "out.json",
            request("kl=0.1"),
            Corpus((dense.parent / "text.txt",), window_tokens=WINDOW_TOKENS),
        )
    assert not list(dense.parent.glob("out.json*"))


def test_windows_that_nothing_leaves_are_refused(dense: Path) -> None:
    with pytest.raises(DeltaLLMError, match="no key would ever be held"):
        run(dense, request("kl=0.1", window=62))


def test_a_budget_that_cannot_be_used_up_is_told(dense: Path) -> None:
    found = run(dense, request("kl=3"))
    assert any("every key outside the window is held already" in line for line in found.lines)
