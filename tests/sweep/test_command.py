"""`deltallm-onnx sweep`, as a user sees it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from support.command_line import Outcome, files_below

from deltallm_onnx import rewrite
from deltallm_onnx.calibration.plan_file import load_plan
from deltallm_onnx.calibration.text import read_text, split_text
from deltallm_onnx.evaluation import compare
from deltallm_onnx.report.trade_off import front, trade_off_section
from deltallm_onnx.runtime import DecoderModel, TextTokenizer
from deltallm_onnx.sweep.measuring import NUMBERS

Run = Callable[..., Outcome]
FORMATS = ("float32", "float16", "int8", "int4")


def test_a_study_is_made_shown_and_continued(folder: Path, sweep: Run) -> None:
    first = sweep("--trials", 7, "--out", "sweep.json", "--json")
    assert first.code == 0, first
    assert [line.split(":")[0] for line in first.err.splitlines()] == [
        "before the first trial",
        *(f"trial {n}" for n in range(7)),
    ]
    data = first.json
    assert data == json.loads((folder / "sweep.json").read_text())
    assert (data["storage"], data["counts"]["complete"]) == ("sqlite:///sweep.db", 7)
    trials = data["trials"]
    assert [t["candidate"]["cache_format"] for t in trials[:4]] == list(FORMATS)
    assert all(t["delta_sparsity"] == 0 for t in trials[:4])
    assert trials[0]["kl"] < 1e-7, "nothing held in float32"
    assert trials[0]["kv_bytes_per_token"] == trials[0]["baseline_kv_bytes_per_token"] == 2 * 4 * 3 * 8
    assert trials[4]["delta_sparsity"] > 0.02, "what convert does"

    second = sweep("--trials", 9)
    assert [line.split(":")[0] for line in second.err.splitlines()] == ["trial 7", "trial 8"]
    for words in ("study tiny in sqlite:///sweep.db: 9 complete", "on the front of kl, kv_bytes_per_token"):
        assert words in second.out
    for name in ("kl", "perplexity_increase", "kv_bytes_per_token", "delta_sparsity", "attn_mac_sparsity", "wall (s)"):
        assert name in second.out.splitlines()[1]
    spent = {f"spend {t['candidate']['spend']:.3g}," for t in trials if t["on_front"] and t["candidate"]["spend"] > 0}
    assert spent
    assert all(words in second.out for words in spent), "rows that differ only in the thresholds are told apart"
    third = sweep("--trials", 0, "--json")
    assert third.err == ""
    assert third.json["trials"][:7] == [
        t | {"on_front": n["on_front"]} for t, n in zip(trials, third.json["trials"][:7], strict=True)
    ]


def test_the_front_is_that_of_the_report(folder: Path, sweep: Run) -> None:
    """Two implementations of dominance, and the report reads the file."""
    data = sweep("--trials", 14, "--sampler", "random", "--out", "s.json", "--json").json
    costs = [(t["kl"], t["kv_bytes_per_token"]) for t in data["trials"]]
    on_front = {t["trial"] for t, best in zip(data["trials"], front(costs), strict=True) if best}
    assert set(data["front"]) == on_front
    assert 2 <= len(on_front) < len(costs), "some trials are beaten"
    kls = [data["trials"][number]["kl"] for number in data["front"]]
    assert kls == sorted(kls)
    section = trade_off_section([("study", folder / "s.json")])
    points = section["sources"][0]["points"]
    assert section["saving"] == "kv_bytes_per_token"
    assert [(p["kl"], p["kv_bytes_per_token"]) for p in points] == costs
    assert [p["on_front"] for p in points] == [t["on_front"] for t in data["trials"]]


def test_its_numbers_are_those_of_the_model_that_its_plan_makes(folder: Path, sweep: Run) -> None:
    """The best trial's plan, written by `rewrite` and scored by the evaluation on the windows of both parts."""
    outcome = sweep("--trials", 16, "--max-kl", 0.05, "--best", "kv_bytes=2.5x", "--plan-out", "best.json", "--json")
    assert outcome.code == 0, outcome
    best = json.loads((folder / "best.json").read_text())
    trial = outcome.json["trials"][best["settings"]["trial"]]
    kept = [t for t in outcome.json["trials"] if t["kv_bytes_per_token"] * 2.5 <= t["baseline_kv_bytes_per_token"]]
    assert trial["kl"] == min(t["kl"] for t in kept)
    config, plan = load_plan(folder / "best.json")
    rewrite(folder / "tiny.onnx", folder / "delta.onnx", config.replace(prefill="delta"), plan=plan)
    dense, delta = (DecoderModel(folder / name, threads=1) for name in ("tiny.onnx", "delta.onnx"))
    parts = split_text(
        read_text([folder / "text.txt"]), TextTokenizer(folder), name="t", window_tokens=64, context=None, windows=12
    )
    for windows, said in ((parts.search, trial), (parts.verification, best["reached"]["verification"])):
        baseline, scored = compare(dense, delta, windows)
        assert scored.counters is not None
        assert said["kl"] == pytest.approx(scored.kl_to_reference, rel=1e-3, abs=1e-6)
        assert said["baseline_perplexity"] == pytest.approx(baseline.perplexity, rel=1e-5)
        assert said["perplexity_increase"] == pytest.approx(scored.perplexity / baseline.perplexity - 1, abs=1e-5)
        for name in ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity"):
            assert said[name] == getattr(scored.counters, name)
    assert outcome.json["best"]["reached"] == best["reached"]
    assert best["reached"]["verification"]["kl_interval"][1] > 0


def test_a_plan_verified_on_one_window_has_no_interval(folder: Path, sweep: Run) -> None:
    outcome = sweep("--trials", 1, "--text-windows", 3, "--best", "kl=1", "--plan-out", "best.json")
    assert outcome.code == 0, outcome
    assert "verified on 1 other window of 64 tokens (one window gives no interval)" in outcome.out
    verified = json.loads((folder / "best.json").read_text())["reached"]["verification"]
    assert verified["kl_interval"] is None
    assert verified["perplexity_increase_interval"] is None


def test_single_channels_and_v_skip_are_searched_where_they_pay(sweep: Run) -> None:
    data = sweep("--trials", 12, "--objective", "attn_mac_sparsity", "--sampler", "random", "--json").json
    assert data["objectives"] == {"kl": "minimize", "attn_mac_sparsity": "maximize"}
    assert {t["candidate"]["rule"] for t in data["trials"]} == {"row query", "element query"}
    assert len({t["candidate"]["v_skip"] for t in data["trials"]}) > 1


def test_decode_time_is_measured_on_the_written_model(folder: Path, sweep: Run) -> None:
    before = files_below(folder)
    data = sweep("--trials", 1, "--time", "--past", 40, "--json").json
    assert data["objectives"] == {"kl": "minimize", "kv_bytes_per_token": "minimize", "decode_time": "minimize"}
    assert data["identity"]["past"] == 40
    [t] = data["trials"]
    assert t["decode_time"] == pytest.approx(t["decode_seconds"] / t["baseline_decode_seconds"])
    assert t["decode_seconds"] > 0
    assert set(files_below(folder)) - set(before) == {folder / "sweep.db"}, "no model is left"


def test_a_plan_of_channels_with_skipped_values_can_be_written(folder: Path, sweep: Run) -> None:
    options = ("--granularity", "element", "--v-skip", "0.01", "--cache-format", "float32", "--window", "9")
    outcome = sweep("--trials", 6, *options, "--best", "delta_sparsity=5%", "--seed", 3)
    assert outcome.code == 0, outcome
    assert "wrote deltallm.json of trial" in outcome.out
    config, plan = load_plan(folder / "deltallm.json")
    assert (config.granularity, config.window, config.cache_format) == ("element", 9, "float32")
    assert {(layer.granularity, layer.v_skip, layer.threshold.shape) for layer in plan.layers} == {
        ("element", 0.01, (3, 8))
    }
    assert rewrite(folder / "tiny.onnx", folder / "delta.onnx", config, plan=plan).path.is_file()


def test_larger_divergences_are_infeasible(sweep: Run) -> None:
    """With a bound that only some keep, nobody else is on the front."""
    data = sweep("--trials", 12, "--sampler", "random", "--max-kl", 0.002, "--json").json
    kls = [t["kl"] for t in data["trials"]]
    assert min(kls) < 0.002 < max(kls)
    assert all(t["kl"] <= 0.002 for t in data["trials"] if t["on_front"])


@pytest.mark.parametrize("edit", ["model", "text", "windows"])
def test_a_study_of_something_else_is_refused(folder: Path, sweep: Run, edit: str) -> None:
    assert sweep("--trials", 1).code == 0
    options: tuple[object, ...] = ()
    if edit == "model":
        (folder / "tiny.onnx").write_bytes((folder / "tiny.onnx").read_bytes().replace(b"tiny", b"tinz"))
    elif edit == "text":
        (folder / "text.txt").write_text((folder / "text.txt").read_text()[::-1])
    else:
        options = ("--text-windows", 9)
    outcome = sweep("--trials", 2, *options)
    what = {"model": "model sha256", "text": "text sha256", "windows": "windows of text"}[edit]
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"error: The study 'tiny' was made with {what} ")
    assert all(len(digits) == 12 for digits in re.findall(r"\b[0-9a-f]{12,}\b", outcome.err))
    assert outcome.err.count("\n") == 1


REFUSALS = {
    "no study": (("--study", " "), "The study has no name"),
    "study that is not there": (("--trials", 0), "There is no study 'tiny'"),
    "missing text": (("--text", "none.txt"), "Cannot read the text none.txt"),
    "short text": (("--text-windows", 12, "--window-tokens", 700), "has 1500 tokens, and its parts need 3 windows"),
    "nothing to hold with sinks": (("--sinks", "60"), "19 with 60 sinks keeps 79 of them exact"),
    "trials": (("--trials", "-1"), "^error: trials is -1: give a whole number of at least 0"),
    "seed": (("--seed", "-1"), "seed is -1"),
    "threads": (("--threads", "0"), "threads is 0"),
    "past": (("--time", "--past", "0"), "past is 0"),
    "text windows": (("--text-windows", "2"), "^error: text-windows is 2: give a whole number of at least 3"),
    "window tokens": (("--window-tokens", "1"), "window-tokens is 1"),
    "nothing to hold": (("--window", "8,62"), "62 with 3 sinks keeps 65 of them exact"),
    "unknown objective": (("--objective", "speed"), "no objective 'speed': choose of kl, kv_bytes"),
    "unknown rule": (("--rule", "best"), "no rule 'best' with granularity row: choose one of relative"),
    "unknown sampler": (("--sampler", "best"), "no sampler 'best'"),
    "unknown effort": (("--effort", "huge"), "no effort 'huge'"),
    "unknown cache": (("--cache-format", "int2"), "cache_format is 'int2'"),
    "sinks": (("--sinks", "1,x"), "sinks is '1,x'"),
    "v_skip": (("--v-skip", "2"), "v_skip is 2"),
    "v_skip text": (("--v-skip", "a"), "v_skip is 'a'"),
    "window": (("--window", "8,y"), "window is 'y'"),
    "context": (("--context", "0"), "^error: context is 0: give a whole number of at least 1"),
    "max_kl": (("--max-kl", "-1"), "max_kl is -1"),
    "timeout": (("--timeout", "0"), "timeout is 0"),
    "past without time": (("--past", "5"), "past is only of use"),
    "budget": (("--best", "good"), "has no known form"),
    "budget nobody keeps": (
        ("--trials", 1, "--best", "kv_bytes=90x"),
        r"keeps kv_bytes=90x: the best of 1 has .*1.00x",
    ),
    "output folder": (("--out", "no/s.json"), "The folder no does not exist"),
    "plan folder": (("--best", "kl=1", "--plan-out", "no/p.json"), "The folder no does not exist"),
    "storage in memory": (("--storage", "sqlite://"), "in memory"),
    "storage folder": (("--storage", "sqlite:///no/s.db"), "The folder of the storage"),
    "storage that is a text": (("--storage", "sqlite:///text.txt"), "file is not a database"),
    "no storage": (("--storage", "me:s3cr3t"), "is no URL of a database"),
    "grace": (("--grace", "0"), "grace is 0: give at least 2 seconds"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_is_one_sentence(folder: Path, sweep: Run, name: str) -> None:
    arguments, sentence = REFUSALS[name]
    before = files_below(folder)
    outcome = sweep(*arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    errors = [line for line in outcome.err.splitlines() if not re.match("trial |before the first", line)]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert re.search(sentence, errors[0]), errors[0]
    assert "s3cr3t" not in errors[0]
    assert set(files_below(folder)) - set(before) <= {folder / "sweep.db"}
    assert (folder / "text.txt").read_bytes() == before[folder / "text.txt"]


def test_a_server_that_does_not_answer_is_told_without_its_password(sweep: Run) -> None:
    """Whether or not a driver is installed; nothing listens on port 1."""
    outcome = sweep("--storage", "postgresql://me:s3cr3t@127.0.0.1:1/db")
    assert (outcome.code, outcome.out) == (2, "")
    assert re.match(r"error: The storage postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db (cannot|needs)", outcome.err)
    assert "s3cr3t" not in outcome.err
    assert "Traceback" not in outcome.err


def test_the_storage_may_come_from_the_environment(folder: Path, sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTALLM_STORAGE", "sqlite:///other.db")
    assert sweep("--trials", 1).code == 0
    assert (folder / "other.db").is_file()
    assert not (folder / "sweep.db").exists()


def test_trials_of_another_program_are_refused(folder: Path, sweep: Run) -> None:
    assert sweep("--trials", 1).code == 0
    study = optuna.load_study(storage=f"sqlite:///{folder}/sweep.db", study_name="tiny")
    study.add_trial(optuna.create_trial(values=[0.0, 0.0], user_attrs={NUMBERS: {"kl": 0.0}}))
    outcome = sweep("--trials", 0)
    assert outcome.code == 2
    assert "Trial 5 of the study was not made by sweep" in outcome.err


def test_without_optuna_the_extra_is_named(sweep: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = sweep()
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: sweep needs optuna: pip install 'deltallm-onnx[sweep]'.\n"


def test_a_study_without_a_finished_trial_is_shown_too(sweep: Run) -> None:
    outcome = sweep("--trials", 5, "--timeout", "1e-9")
    assert outcome.code == 0, outcome
    assert "5 waiting; 0 on the front" in outcome.out
    assert "has no finished trial to choose" in sweep("--trials", 0, "--best", "kl=1").err
