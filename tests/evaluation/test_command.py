"""`deltallm-onnx eval` as a user sees it."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Outcome, files_below, run_here
from support.evaluation_models import ROW, Rewritten
from support.letter_tokenizer import save_letter_tokenizer
from support.tiny_decoder import save_tiny_decoder, tiny_tokenizer
from support.tiny_models import save_tiny

#: The names the issue of this command promises.
KEYS = (
    "perplexity",
    "baseline_perplexity",
    "kl",
    "top1_agreement",
    "delta_sparsity",
    "qk_mac_sparsity",
    "attn_mac_sparsity",
    "kv_bytes_per_token",
    "kv_bytes_read",
    "tokens_per_second",
)
SHORT = ("--window-tokens", "90")

Run = Callable[..., Outcome]


@pytest.fixture
def deltallm(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_here(capsys, *arguments)


def test_json_has_every_figure(deltallm: Run, rewritten: Rewritten, dense_path: Path, text_path: Path) -> None:
    model = rewritten(ROW.replace(cache_format="int8"))
    options = ("--windows", 3, "--threads", 1, "--retrieval-samples", 1, "--depths", "0,0.5", "--seed", 4)
    outcome = deltallm("eval", model, "--baseline", dense_path, "--text", text_path, *SHORT, *options, "--json")
    assert outcome.code == 0, outcome
    data = outcome.json
    assert all(isinstance(data[key], float) for key in KEYS), data
    assert data["kl"] > 1e-4
    assert (data["windows"], data["window_tokens"], data["predictions"]) == (3, 90, 267)
    assert data["text"]["tokens"] == 2000
    assert (data["mode"], data["seed"], data["threads"]) == ("prefill+decode", 4, 1)
    for key in ("perplexity_interval", "perplexity_ratio_interval", "kl_interval", "top1_agreement_interval"):
        low, high = data[key]
        assert low <= data[key.removesuffix("_interval")] <= high
    assert [(r["task"], r["depth"]) for r in data["retrieval"]] == [
        ("repeated sequence", 0.0),
        ("repeated sequence", 0.5),
        ("repeated sequence", None),
    ]
    assert all(r["baseline"] is not None and r["chance_log_prob"] < 0 for r in data["retrieval"])
    assert "No pass key was asked for: the tokenizer does not keep digits apart." in data["notes"]
    assert "NaN" not in outcome.out
    assert "Infinity" not in outcome.out


def test_tables(deltallm: Run, rewritten: Rewritten, dense_path: Path, text_path: Path) -> None:
    outcome = deltallm("eval", rewritten(ROW), "--baseline", dense_path, "--text", text_path, *SHORT, "--windows", 2)
    assert outcome.code == 0, outcome
    for name in (
        "perplexity",
        "KL to the baseline",
        "decode tokens/s",
        "never said",
        "1–89",
        *KEYS[4:9],
        "(B, one layer)",
        "(B, all layers, to",
    ):
        assert name in outcome.out
    assert "178 predictions in 2 windows of 90 tokens, every token read as a decode step reads it" in outcome.err
    assert "median of 32 steps behind 58 tokens" in outcome.err


def test_alone_and_quick(deltallm: Run, rewritten: Rewritten, text_path: Path) -> None:
    """Without a baseline, retrieval and speed, what was not measured has no number and no column."""
    arguments = ("eval", rewritten(ROW), "--text", text_path, *SHORT, "--no-retrieval", "--no-speed")
    outcome = deltallm(*arguments, "--json")
    assert outcome.code == 0, outcome
    missing = {key for key in KEYS if outcome.json[key] is None}
    assert missing == {"baseline_perplexity", "kl", "top1_agreement", "tokens_per_second"}
    assert outcome.json["retrieval"] == []
    outcome = deltallm(*arguments)
    assert "│ baseline" not in outcome.out
    assert re.search(r"KL to the baseline \(nats/token\) +│ +–", outcome.out)
    assert "decode speed was not measured" in outcome.err
    assert "No baseline was given" in outcome.err


def test_a_limit_of_tokens_holds_for_both_parts(deltallm: Run, rewritten: Rewritten, text_path: Path) -> None:
    def evaluate(limit: int) -> dict[str, object]:
        arguments = ("--max-tokens", limit, *SHORT, "--depths", "0.5", "--no-speed", "--json")
        outcome = deltallm("eval", rewritten(ROW), "--text", text_path, *arguments)
        assert outcome.code == 0, outcome
        return outcome.json

    # Two tasks at one depth and without: 360 tokens a sample.
    enough, less = evaluate(360), evaluate(359)
    assert (enough["windows"], less["windows"]) == (4, 3)
    assert len(enough["retrieval"]) == 2
    assert less["retrieval"] == []
    assert "Retrieval was left out: it reads at least 360 tokens, more than --max-tokens." in less["notes"]


def test_modes(deltallm: Run, rewritten: Rewritten, dense_path: Path, text_path: Path) -> None:
    arguments = ("--baseline", dense_path, "--text", text_path, *SHORT, "--no-retrieval", "--no-speed", "--json")
    found = {}
    for mode in ("prefill+decode", "prefill", "decode"):
        outcome = deltallm("eval", rewritten(ROW), *arguments, "--mode", mode)
        assert outcome.code == 0, outcome
        found[mode] = outcome.json
    assert found["prefill"]["kl"] == pytest.approx(found["prefill+decode"]["kl"], rel=1e-3)
    assert found["decode"]["predictions"] == found["prefill"]["predictions"] // 89 * 44
    assert "the first 45 tokens read exactly as a prompt" in found["decode"]["measured"]


@pytest.fixture
def folder(tmp_path: Path, dense_path: Path, text_path: Path) -> Path:
    """A model's folder with wrong files in it."""
    shutil.copy(dense_path, tmp_path / "x.onnx")
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    shutil.copy(text_path, tmp_path / "book.txt")
    (tmp_path / "short.txt").write_text("a short story")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "cut.onnx").write_bytes(dense_path.read_bytes()[:4000])
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 230}))
    (tmp_path / "bare" / "empty").mkdir(parents=True)
    shutil.copy(dense_path, tmp_path / "bare" / "x.onnx")
    save_tiny_decoder(tmp_path / "other")
    tokens = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokens))
    return tmp_path


TEXT = ("--text", "book.txt")
REFUSALS = {
    "nothing to read": (("x.onnx",), "give a text with --text FILE"),
    "windows of no text": (("x.onnx", "--tasks", "piqa", "--windows", "3"), "--windows is for texts: give one with"),
    "tokens of no text": (("x.onnx", "--tasks", "piqa", "--max-tokens", "3"), "--max-tokens is for texts"),
    "endless text": (("x.onnx", "--text", "/dev/zero"), "has more than 268435456 bytes"),
    "baseline folder": (("x.onnx", *TEXT, "--baseline", "bare/empty"), r"bare/empty has no config\.json"),
    "no such model": (("nope.onnx", *TEXT), r"There is no file nope\.onnx"),
    "not a model": (("book.txt", *TEXT), r"book\.txt is not an ONNX model"),
    "cut short": (("cut.onnx", *TEXT), "cut short"),
    "no such baseline": (("x.onnx", *TEXT, "--baseline", "nope.onnx"), r"There is no file nope\.onnx"),
    "model is a folder": ((".", *TEXT), r"error: \. is a directory: name the \.onnx file in it"),
    "the model itself": (
        ("x.onnx", *TEXT, "--baseline", "bare/../x.onnx"),
        "x.onnx is the model itself: give its dense",
    ),
    "the model itself, with tasks": (
        ("x.onnx", "--tasks", "piqa", "--baseline", "bare/../x.onnx"),
        "x.onnx is the model itself: give its dense",
    ),
    "no such text": (("x.onnx", "--text", "nope.txt"), r"Cannot read the text nope\.txt"),
    "text is a folder": (("x.onnx", "--text", "bare"), "Cannot read the text bare"),
    "empty text": (("x.onnx", "--text", "empty.txt"), r"empty\.txt is empty"),
    "text not UTF-8": (("x.onnx", "--text", "latin.txt"), r"latin\.txt is not UTF-8"),
    "short text": (("x.onnx", "--text", "short.txt"), "has 13 tokens, fewer than one window of 230"),
    "long windows": (("x.onnx", *TEXT, "--window-tokens", "231"), "the model's context has 230"),
    "many windows": (("x.onnx", *TEXT, "--windows", "9"), "has 2000 tokens, 9 windows of 230 need 2070"),
    "no windows": (("x.onnx", *TEXT, "--windows", "0"), "windows is 0"),
    "max-tokens": (("x.onnx", *TEXT, "--max-tokens", "1"), "max-tokens is 1"),
    "no tokenizer": (("bare/x.onnx", *TEXT), r"There is no bare/tokenizer\.json: .*--tokenizer DIR"),
    "no tokenizer there": (("x.onnx", *TEXT, "--tokenizer", "bare"), r"There is no bare/tokenizer\.json"),
    "another tokenizer": (
        ("x.onnx", *TEXT, "--baseline", "other/tiny.onnx"),
        r"other/tokenizer\.json reads the text differently from tokenizer\.json",
    ),
    "mode": (("x.onnx", *TEXT, "--mode", "both"), "mode is 'both': choose one of prefill\\+decode, prefill, decode"),
    "depths": (("x.onnx", *TEXT, "--depths", "0.1,deep"), "depths is '0.1,deep'"),
    "depth": (("x.onnx", *TEXT, "--depths", "1.1"), "depth is 1.1"),
    "samples": (("x.onnx", *TEXT, "--retrieval-samples", "0"), "retrieval-samples is 0"),
    "threads": (("x.onnx", *TEXT, "--threads", "0"), "threads is 0"),
    "seed": (("x.onnx", *TEXT, "--seed", "-1"), "seed is -1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusal(folder: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    arguments, sentence = REFUSALS[case]
    monkeypatch.chdir(folder)
    before = files_below(folder)
    outcome = deltallm("eval", *arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert re.search(sentence, outcome.err), outcome.err
    assert files_below(folder) == before


def test_a_tokenizer_from_elsewhere(folder: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arguments = ("--text", "book.txt", "--tokenizer", ".", "--no-speed", "--no-retrieval", *SHORT, "--json")
    elsewhere, beside = deltallm("eval", "bare/x.onnx", *arguments), deltallm("eval", "x.onnx", *arguments)
    assert elsewhere.json["perplexity"] == beside.json["perplexity"]


def test_a_context_is_told_by_the_tokenizers_folder_too(
    folder: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    outcome = deltallm("eval", "bare/x.onnx", *TEXT, "--tokenizer", ".", "--no-speed", "--no-retrieval", "--json")
    assert outcome.json["window_tokens"] == 230


def test_a_baseline_is_traced_from_a_model_directory(
    tmp_path: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`convert --dense` writes the same model, and nothing is left of the one that was traced meanwhile."""
    source, scratch = tmp_path / "source", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    save_tiny("llama", source)
    save_letter_tokenizer(source)
    dense = tmp_path / "dense" / "dense.onnx"
    dense.parent.mkdir()
    outcome = deltallm("convert", source, dense, "--dense")
    assert outcome.code == 0, outcome
    assert re.search(r"\d attention layers, dense\nwrote .*dense\.onnx \(\d files", outcome.out)
    assert deltallm("rewrite", dense, dense.with_name("x.onnx"), "--threshold", 0.9, "--window", 8).code == 0
    (tmp_path / "letters.txt").write_text("the quick brown fox " * 40)
    options = ("--text", tmp_path / "letters.txt", "--window-tokens", 61, "--no-speed", "--no-retrieval", "--json")
    found = [deltallm("eval", dense.with_name("x.onnx"), "--baseline", b, *options) for b in (source, dense)]
    traced, written = (outcome.json for outcome in found)
    assert traced["kl"] == written["kl"] > 0
    assert traced["baseline"] == str(source)
    assert list(scratch.iterdir()) == []


def test_a_dense_model_takes_no_settings_of_delta_attention(deltallm: Run, tmp_path: Path) -> None:
    for options, sentence in (
        (("--threshold", 0.5), "--threshold is for delta attention"),
        (("--profile", "exact"), "--profile is for delta attention"),
        (("--no-copy-library",), "--copy-library is for delta attention"),
        (("--budget", "kl=0.1"), "leave out --budget and --calibrate"),
    ):
        outcome = deltallm("convert", tmp_path, tmp_path / "x.onnx", "--dense", *options)
        assert (outcome.code, sentence in outcome.err) == (2, True), outcome
