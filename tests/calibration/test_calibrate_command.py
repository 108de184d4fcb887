"""`deltallm-onnx calibrate`, as a user sees it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.command_line import Outcome, files_below, run_here
from support.quantised_models import save_quantised
from support.tiny_decoder import save_tiny_decoder
from support.tiny_models import save_tiny

from deltallm_onnx.calibration.meter import ModelMeter
from deltallm_onnx.calibration.plan_file import load_plan

SETTINGS = ("--window-tokens", 64, "--window", 9, "--sinks", 2, "--effort", "short", "--threads", 1)
Run = Callable[..., Outcome]


@pytest.fixture
def deltallm(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_here(capsys, *arguments)


def letters(count: int) -> str:
    return "".join(np.random.default_rng(41).choice([*"abcdefghijklmnopqrstuvwxyz ."], count))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with tiny.onnx, its tokenizer and text.txt."""
    save_tiny_decoder(tmp_path)
    (tmp_path / "text.txt").write_text(letters(3000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_budget_to_a_model(folder: Path, deltallm: Run) -> None:
    outcome = deltallm("calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=0.004", *SETTINGS)
    assert outcome.code == 0, outcome
    for words in (
        "calibrated for kl=0.004 on text.txt",
        "verified on 8 other windows of 64 tokens",
        "wrote deltallm.json",
        "use it by: deltallm-onnx rewrite tiny.onnx OUT.onnx --plan deltallm.json\n",
    ):
        assert words in outcome.out
    for name in ("kl ", "perplexity", "kv_bytes_per_token", "delta_sparsity", "attn_mac_sparsity", "wall time"):
        assert f"  {name}" in outcome.out
    steps = outcome.err.splitlines()
    assert steps[0] == "reading the text with the dense model"
    assert re.fullmatch(r"at most \d+ readings of a window of text from here, up to \d+ seconds?", steps[1])
    assert steps[2:] == [
        "values that may be left out",
        "what single heads cost",
        "closing on kl=0.004 with window 9",
        "verifying",
    ]
    config, plan = load_plan(folder / "deltallm.json")
    assert (config.window, config.sinks) == (9, 2)
    assert deltallm("rewrite", "tiny.onnx", "delta.onnx", "--plan", "deltallm.json").code == 0
    thetas = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load("delta.onnx").graph.initializer
        if tensor.name.startswith("deltallm.threshold")
    }
    assert np.array_equal(thetas["deltallm.threshold.1"], plan[1].threshold)


def test_json_is_the_content_of_the_file(folder: Path, deltallm: Run) -> None:
    lines = [json.dumps({"story": letters(400)}) for _ in range(8)]
    (folder / "set.jsonl").write_text("\n".join(lines))
    arguments = ("--dataset", "set.jsonl", "--text-key", "story", "--text", "text.txt", "--out", "my.json", "--json")
    outcome = deltallm("calibrate", "tiny.onnx", *arguments, "--budget", "delta_sparsity=50%", *SETTINGS)
    assert outcome.code == 0, outcome
    assert outcome.json == json.loads((folder / "my.json").read_text())
    assert outcome.err.count("\n") == 6, "a line per step, none of them on stdout"
    assert outcome.json["text"]["name"] == "text.txt, set.jsonl"
    assert outcome.json["settings"]["windows"] == [9]


def test_a_hugging_face_model_is_traced_first_and_nothing_of_that_stays(folder: Path, deltallm: Run) -> None:
    save_tiny("llama", folder / "hf")
    (folder / "hf" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    before = files_below(folder)
    options = ("--window", "7,20%", "--rule", "relative", "--rule", "absolute", "--effort", "short", "--threads", 1)
    outcome = deltallm("calibrate", "hf", "--text", "text.txt", "--budget", "delta_sparsity=0.3", *options, "--json")
    assert outcome.code == 0, outcome
    assert set(files_below(folder)) - set(before) == {folder / "deltallm.json"}
    assert "Tracing\n" in outcome.err
    assert "Writing its graph\n" in outcome.err
    assert ".partial" not in outcome.err
    assert outcome.json["settings"]["windows"] == [7, 26]  # 20 % of 130 positions
    assert outcome.json["text"]["window_tokens"] == 130
    assert set(outcome.json["rules"].values()) <= {"relative", "absolute"}


REFUSALS = {
    "unknown budget": (("--budget", "accuracy=1"), "has no known form: give one such as kl=0.02"),
    "impossible budget": (("--budget", "kv_bytes=900x"), r"cannot be met .* the best reachable is kv_bytes=\d"),
    "no text": (("--budget", "kl=1", "--text", "none.txt"), "Cannot read the text none.txt"),
    "empty text": (("--budget", "kl=1", "--text", "empty.txt"), "The text empty.txt is empty"),
    "short text": (("--budget", "kl=1", "--text", "short.txt"), "has 100 tokens, and its parts need 3 windows of 64"),
    "unknown rule": (("--budget", "kl=1", "--rule", "best"), "has no rule 'best': choose one of"),
    "rule of another granularity": (("--budget", "kl=1", "--rule", "sigma"), "Granularity row has no rule 'sigma'"),
    "unknown effort": (("--budget", "kl=1", "--effort", "huge"), "There is no effort 'huge'"),
    "window": (("--budget", "kl=1", "--window", "8,x"), "window is 'x'"),
    "context": (("--budget", "kl=1", "--context", "0"), "context is 0: give a whole number of at least 1"),
    "seed": (("--budget", "kl=1", "--seed", "-1"), "seed is -1: give a whole number of at least 0"),
    "threads": (("--budget", "kl=1", "--threads", "0"), "threads is 0: give a whole number of at least 1"),
    "packed window": (("--budget", "kl=1", "--window", "0"), "keeps at least 8"),
    "hub data set": (("--budget", "kl=1", "--dataset", "wikitext"), "There is no file wikitext: --dataset reads local"),
    "output folder": (("--budget", "kl=1", "--out", "no/out.json"), "The folder no does not exist"),
    "output is a folder": (("--budget", "kl=1", "--out", "taken"), "taken is a directory: give the name of the file"),
    "no budget": ((), "--budget"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_is_one_sentence(folder: Path, deltallm: Run, name: str) -> None:
    arguments, sentence = REFUSALS[name]
    (folder / "taken").mkdir()
    (folder / "empty.txt").write_text(" \n")
    (folder / "short.txt").write_text("a" * 100)
    before = files_below(folder)
    text = () if "--text" in arguments or "--dataset" in arguments else ("--text", "text.txt")
    own = {option for option in arguments if str(option).startswith("--")}
    pairs = zip(SETTINGS[::2], SETTINGS[1::2], strict=True)
    settings = [part for option, value in pairs if option not in own for part in (option, value)]
    outcome = deltallm("calibrate", "tiny.onnx", *text, *arguments, *settings)
    assert (outcome.code, outcome.out) == (2, "")
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == outcome.err.splitlines()[-1:]
    assert re.search(sentence, errors[0]), errors[0]
    left = set(files_below(folder)) - set(before)
    assert left <= {folder / "deltallm.json.journal"}


@pytest.mark.parametrize(
    ("text", "sentence"), [("none.txt", "Cannot read the text none.txt"), ("empty.txt", "is empty")]
)
def test_a_text_is_read_before_a_model_is_traced(folder: Path, deltallm: Run, text: str, sentence: str) -> None:
    (folder / "empty.txt").write_text("\n")
    outcome = deltallm("calibrate", "nowhere", "--text", text, "--budget", "kl=1", *SETTINGS)
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err


@pytest.mark.parametrize("confidence", ["0.4", "1", "nan"])
@pytest.mark.usefixtures("folder")
def test_a_confidence_out_of_range_is_one_sentence(deltallm: Run, confidence: str) -> None:
    outcome = deltallm(
        "calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=1", "--confidence", confidence, *SETTINGS
    )
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: The confidence {confidence} is out of range: give one from 0.5 to 0.99.")


@pytest.mark.parametrize("model", ["nowhere.onnx", "text.txt", "empty"])
def test_what_is_no_model_is_refused(folder: Path, deltallm: Run, model: str) -> None:
    (folder / "empty").mkdir()
    outcome = deltallm("calibrate", model, "--text", "text.txt", "--budget", "kl=1", *SETTINGS)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert model in outcome.err


def test_a_refused_budget_names_the_journal_and_the_next_run_says_what_it_has(folder: Path, deltallm: Run) -> None:
    arguments = ("calibrate", "tiny.onnx", "--text", "text.txt", *SETTINGS, "--budget")
    refused = deltallm(*arguments, "kv_bytes=900x")
    assert refused.code == 2
    assert "The measurements stay in deltallm.json.journal" in refused.err
    lines = (folder / "deltallm.json.journal").read_text().count("\n")
    outcome = deltallm(*arguments, "kl=0.004")
    assert outcome.code == 0, outcome
    assert outcome.err.startswith(f"deltallm.json.journal has {lines - 1} measurements: ")
    assert "journal" not in deltallm(*arguments, "kl=0.004").err, "it is gone with success"


@pytest.mark.usefixtures("folder")
def test_a_rewritten_model_is_sent_back_to_the_dense_one(deltallm: Run) -> None:
    assert deltallm("rewrite", "tiny.onnx", "delta.onnx", "--threshold", 0.1).code == 0
    outcome = deltallm("calibrate", "delta.onnx", "--text", "text.txt", "--budget", "kl=1", *SETTINGS)
    assert outcome.code == 2
    assert "delta.onnx is already rewritten: calibrate the dense model it was made from." in outcome.err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("weights", ["the same", "other"])
def test_a_plan_of_another_model_is_told(deltallm: Run, weights: str) -> None:
    assert deltallm("calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=0.004", *SETTINGS).code == 0
    model = onnx.load("tiny.onnx")
    model.graph.name = "renamed"
    if weights == "other":
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[-1, 0] += 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    # The digest is of the weights, wherever they lie.
    onnx.save(model, "moved.onnx", save_as_external_data=True, location="moved.data", size_threshold=200)
    outcome = deltallm("rewrite", "moved.onnx", "delta.onnx", "--plan", "deltallm.json")
    assert outcome.code == 0, outcome
    said = "The plan was calibrated on other weights than these (those of tiny.onnx)" in outcome.out
    assert said == (weights == "other")


def test_a_corrupt_journal_is_refused_and_can_be_left_aside(folder: Path, deltallm: Run) -> None:
    (folder / "deltallm.json.journal").write_text("not a journal\n")
    arguments = ("calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=0.004", *SETTINGS)
    outcome = deltallm(*arguments)
    assert outcome.code == 2
    assert "Line 1 of deltallm.json.journal is no line of a calibration journal" in outcome.err
    assert deltallm(*arguments, "--no-resume").code == 0


def test_a_model_without_tokenizer_is_refused(folder: Path, deltallm: Run) -> None:
    (folder / "tokenizer.json").unlink()
    outcome = deltallm("calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=1", *SETTINGS)
    assert outcome.code == 2
    assert "There is no tokenizer.json" in outcome.err


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C in the measurement after so many; none any more after `interrupted_after(-1)`."""
    left, recorded = [-1], ModelMeter._recorded

    def counted(self: ModelMeter, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise KeyboardInterrupt
        return recorded(self, *arguments)

    monkeypatch.setattr(ModelMeter, "_recorded", counted)

    def begin(count: int) -> None:
        left[0] = count

    return begin


def test_ctrl_c_names_the_journal_and_how_to_go_on(
    folder: Path, deltallm: Run, interrupted_after: Callable[[int], None]
) -> None:
    arguments = ("calibrate", "tiny.onnx", "--text", "text.txt", "--budget", "kl=0.004", *SETTINGS)
    before = files_below(folder)
    interrupted_after(0)
    outcome = deltallm(*arguments)
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err.splitlines()[-1] == "error: Interrupted: nothing was written."
    assert files_below(folder) == before

    interrupted_after(2)
    outcome = deltallm(*arguments)
    assert (outcome.code, outcome.out) == (130, "")
    again = "finished measurements are in deltallm.json.journal, and the same command goes on from there."
    assert outcome.err.splitlines()[-1] == f"error: Interrupted: {again}"
    assert set(files_below(folder)) - set(before) == {folder / "deltallm.json.journal"}
    interrupted_after(0)
    outcome = deltallm(*arguments, "--no-resume", "--seed", 1)
    assert outcome.err.endswith("goes on from there without --no-resume.\n")

    interrupted_after(-1)
    outcome = deltallm(*arguments, "--json")
    assert outcome.code == 0, outcome
    assert re.match(r"deltallm.json.journal has \d+ measurements: those that are needed here", outcome.err)
    first = outcome.json["layers"]
    (folder / "deltallm.json").unlink()
    assert deltallm(*arguments, "--json").json["layers"] == first, "as without the interruption"


def test_quantised_weights_of_the_baseline_are_told(folder: Path, deltallm: Run) -> None:
    save_quantised(folder / "tiny.onnx", folder / "small.onnx", "int8")
    outcome = deltallm("calibrate", "small.onnx", "--text", "text.txt", "--budget", "delta_sparsity=0.3", *SETTINGS)
    assert outcome.code == 0, outcome
    note = (
        "small.onnx has quantised weights (9 MatMulNBits, 1 GatherBlockQuantized), and it is the baseline: what is "
        "measured is what delta attention costs on top of them, not what quantising them cost."
    )
    assert outcome.err.startswith(f"{note}\n"), "before the work"
    assert f"note: {note}\n" in outcome.out
    assert note in json.loads((folder / "deltallm.json").read_text())["notes"]
