"""Every wrong input ends in one sentence on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from support.command_line import Outcome, files_below

Run = Callable[..., Outcome]


@pytest.fixture
def folder(dense: Path) -> Path:
    """The model's folder with wrong files of every kind in it."""
    folder = dense.parent
    (folder / "cut.onnx").write_bytes(dense.read_bytes()[:5000])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "bad.json").write_text('{"threshold": 0.1,')
    (folder / "unknown.json").write_text('{"treshold": 0.1}')
    (folder / "range.json").write_text('{"sinks": -2}')
    (folder / "list.json").write_text("[1]")
    (folder / "latin.json").write_bytes(b'{"prefill": "\xe9"}')
    values = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    results = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    weight = numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "plain", [values], [results], [weight])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(plain, folder / "plain.onnx")
    outside = onnx.load(folder / "plain.onnx")
    tensor = outside.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.data")
    onnx.save(outside, folder / "outside.onnx")
    (folder.parent / "secret.data").write_bytes(bytes(12))
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    save_file({"w": np.ones(3, np.float32)}, folder / "hf" / "model.safetensors")
    return folder


REWRITE = ("rewrite", "tiny.onnx", "new.onnx")
PROMPT = ("--prompt", "hello")

REFUSALS = {
    "no such command": (("convolve",), "No such command"),
    "no such option": ((*REWRITE, "--treshold", "1"), "No such option"),
    "missing argument": (("rewrite", "tiny.onnx"), "Missing argument"),
    "missing prompt": (("run", "tiny.onnx"), "Missing option"),
    "rewrite: missing file": (("rewrite", "nope.onnx", "new.onnx"), r"There is no file nope\.onnx"),
    "rewrite: cut short": (("rewrite", "cut.onnx", "new.onnx"), r"cut\.onnx is not an ONNX model, or is cut short"),
    "rewrite: empty": (("rewrite", "empty.onnx", "new.onnx"), r"empty\.onnx is not an ONNX model"),
    "rewrite: not ONNX": (("rewrite", "tokenizer.json", "new.onnx"), "is not an ONNX model"),
    "rewrite: no attention": (("rewrite", "plain.onnx", "new.onnx"), "no Attention, no GroupQueryAttention"),
    "rewrite: external data outside": (("rewrite", "outside.onnx", "new.onnx"), "leaves the model's directory"),
    "rewrite: over itself": (("rewrite", "tiny.onnx", "tiny.onnx"), "would replace"),
    "rewrite: output folder missing": (("rewrite", "tiny.onnx", "no/new.onnx"), "The folder no does not exist"),
    "rewrite: output without .onnx": (("rewrite", "tiny.onnx", "new"), r"new does not end in \.onnx"),
    "rewrite: output is a folder": (("rewrite", "tiny.onnx", "hf"), "hf is a directory"),
    "rewrite: output below a file": (("rewrite", "tiny.onnx", "bad.json/new.onnx"), "does not exist"),
    "threshold negative": ((*REWRITE, "--threshold", "-0.5"), "threshold is -0.5"),
    "threshold NaN": ((*REWRITE, "--threshold", "nan"), "threshold is nan"),
    "threshold infinite": ((*REWRITE, "--threshold", "inf"), "threshold is inf"),
    "threshold no number": ((*REWRITE, "--threshold", "some"), "^error: threshold is 'some': give a number.$"),
    "sinks no number": ((*REWRITE, "--sinks=1", "--sinks=1.5"), "^error: sinks is '1.5': give a whole number.$"),
    "sinks without a value": ((*REWRITE, "--sinks"), "'--sinks' requires an argument"),
    "window -1": ((*REWRITE, "--window", "-1"), "window is '-1'"),
    "window no number": ((*REWRITE, "--window", "all"), "window is 'all'"),
    "window too many percent": ((*REWRITE, "--window", "101%"), "window is '101%'"),
    "window NaN percent": ((*REWRITE, "--window", "nan%"), "window is 'nan%'"),
    "window percent, context unknown": ((*REWRITE, "--window", "5%"), "context length is not known"),
    "window too large": ((*REWRITE, "--window", str(2**31)), f"window is {2**31}"),
    "context 0": ((*REWRITE, "--window", "5%", "--context", "0"), "context is 0: give a whole number of at least 1"),
    "sinks negative": ((*REWRITE, "--sinks", "-1"), "sinks is -1"),
    "refresh negative": ((*REWRITE, "--refresh", "-1"), "refresh is -1"),
    "granularity": ((*REWRITE, "--granularity", "block"), "granularity is 'block': choose one of element, row"),
    "rule": ((*REWRITE, "--rule", "some"), "has no rule 'some': choose one of relative, absolute, query"),
    "rule of rows": ((*REWRITE, "--granularity", "element", "--rule", "absolute"), "Granularity element has no rule"),
    "rule to calibrate": ((*REWRITE, "--rule", "query"), "nothing is calibrated here: choose relative or absolute,"),
    "rule to calibrate, channels": (
        (*REWRITE, "--granularity", "element", "--rule", "sigma"),
        "nothing is calibrated here: choose uniform,",
    ),
    "prefill": ((*REWRITE, "--prefill", "some"), "prefill is 'some'"),
    "cache format": ((*REWRITE, "--cache-format", "int3"), "cache_format is 'int3'"),
    "v_skip 1": ((*REWRITE, "--v-skip", "1"), "v_skip is 1.0"),
    "profile unknown": ((*REWRITE, "--profile", "fast"), "no profile 'fast': choose one of paper, balanced, exact"),
    "profile needs a context": ((*REWRITE, "--profile", "paper"), "give --context TOKENS or --window TOKENS"),
    "config missing": ((*REWRITE, "--config", "nope.json"), r"Cannot read the configuration nope\.json"),
    "config is a folder": ((*REWRITE, "--config", "hf"), "Cannot read the configuration hf"),
    "config malformed": ((*REWRITE, "--config", "bad.json"), r"bad\.json is not JSON"),
    "config no UTF-8": ((*REWRITE, "--config", "latin.json"), r"Cannot read the configuration latin\.json"),
    "config unknown key": ((*REWRITE, "--config", "unknown.json"), "unknown key 'treshold'"),
    "config out of range": ((*REWRITE, "--config", "range.json"), "sinks is -2"),
    "config a list": ((*REWRITE, "--config", "list.json"), "holds a list"),
    "convert: missing folder": (("convert", "nope", "new.onnx"), "nope"),
    "convert: no model in it": (("convert", ".", "new.onnx"), r"config\.json"),
    "convert: unknown architecture": (("convert", "hf", "new.onnx"), "no-such-architecture"),
    "convert: output without .onnx": (("convert", "hf", "new.bin"), r"new\.bin does not end in \.onnx"),
    "convert: output folder missing": (("convert", "hf", "no/new.onnx"), "The folder no does not exist"),
    "convert: rule to calibrate": (
        ("convert", "hf", "new.onnx", "--no-calibrate", "--rule", "query"),
        "nothing is calibrated here: choose relative or absolute,",
    ),
    "convert: window -1": (("convert", "hf", "new.onnx", "--window", "-1"), "window is '-1'"),
    "inspect: missing": (("inspect", "nope.onnx"), r"There is no file nope\.onnx"),
    "inspect: a folder": (("inspect", "hf"), "hf is a directory"),
    "inspect: cut short": (("inspect", "cut.onnx"), "cut short"),
    "inspect: external data outside": (("inspect", "outside.onnx"), "leaves the model's directory"),
    "diff: missing": (("diff", "tiny.onnx", "nope.onnx"), r"nope\.onnx"),
    "diff: cut short": (("diff", "tiny.onnx", "cut.onnx"), r"cut\.onnx"),
    "diff: unknown thing to ignore": (("diff", "tiny.onnx", "tiny.onnx", "--ignore", "colour"), "colour"),
    "run: missing": (("run", "nope.onnx", *PROMPT), r"There is no file nope\.onnx"),
    "run: cut short": (("run", "cut.onnx", *PROMPT), "cut short"),
    "run: no language model": (("run", "plain.onnx", *PROMPT), "not a language model"),
    "run: external data outside": (("run", "outside.onnx", *PROMPT), "leaves the model's directory"),
    "run: empty prompt": (("run", "tiny.onnx", "--prompt", ""), "no token"),
    "run: no new token": (("run", "tiny.onnx", *PROMPT, "--max-new-tokens", "0"), "max-new-tokens is 0"),
    "run: temperature": (("run", "tiny.onnx", *PROMPT, "--temperature", "-1"), "temperature is -1"),
    "run: top-p": (("run", "tiny.onnx", *PROMPT, "--top-p", "0"), "top-p is 0"),
    "run: top-k": (("run", "tiny.onnx", *PROMPT, "--top-k", "-1"), "top-k is -1"),
    "run: threads": (("run", "tiny.onnx", *PROMPT, "--threads", "0"), "threads is 0"),
    "run: seed": (("run", "tiny.onnx", *PROMPT, "--seed", "-1"), "seed is -1"),
}


def assert_refused(outcome: Outcome, sentence: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    *steps, error = outcome.err.splitlines()
    assert error.startswith("error: ")
    assert all(step.startswith(("Fetching", "Loading")) for step in steps), "what convert did before"
    assert re.search(sentence, error), outcome.err


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(folder: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    arguments, sentence = REFUSALS[case]
    monkeypatch.chdir(folder)
    before = files_below(folder.parent)
    assert_refused(deltallm(*arguments), sentence)
    assert files_below(folder.parent) == before


def test_a_rewritten_model_is_not_rewritten_again(delta: Path, deltallm: Run) -> None:
    assert_refused(deltallm("rewrite", delta, delta.with_name("again.onnx")), "already rewritten")
    assert not delta.with_name("again.onnx").exists()


def test_run_without_a_tokenizer(dense: Path, deltallm: Run) -> None:
    (dense.parent / "tokenizer.json").unlink()
    assert_refused(deltallm("run", dense, *PROMPT), r"There is no .*tokenizer\.json")


def test_run_without_the_library(delta: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", "/no/such/library.so")
    assert_refused(deltallm("run", delta, *PROMPT), "DELTALLM_OPS_LIBRARY names /no/such/library.so")


def test_a_library_that_cannot_be_loaded(delta: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = delta.with_name("libdeltallm_ops.so")
    fake.write_bytes(b"\x7fELF but no more")
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(fake))
    assert_refused(deltallm("run", delta, *PROMPT), "cannot load .*libdeltallm_ops.so .*rebuild it")


def test_an_output_folder_that_cannot_be_written(dense: Path, deltallm: Run) -> None:
    """/dev/null stands for a disk that refuses; permissions would not stop the superuser."""
    assert_refused(deltallm("rewrite", dense, "/dev/null/new.onnx"), "/dev/null")
