"""What every command prints and returns when all is well."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from support.command_line import Outcome
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, QUERY_HEADS, tiny_tokenizer
from support.tiny_models import save_tiny

Run = Callable[..., Outcome]
PROMPT = ("--prompt", "hello world", "--max-new-tokens", "24")


def config_of(path: Path) -> dict[str, object]:
    properties = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    config = json.loads(properties["deltallm.config"])
    assert isinstance(config, dict)
    return config


def test_version(deltallm: Run) -> None:
    outcome = deltallm("--version")
    assert outcome.code == 0
    assert re.fullmatch(r"deltallm-onnx \d+\.\d+\.\d+\S*\n", outcome.out)


def test_no_argument_shows_the_help(deltallm: Run) -> None:
    assert deltallm() == deltallm("--help")


@pytest.mark.parametrize("command", [(), ("convert",), ("rewrite",), ("inspect",), ("diff",), ("run",)])
def test_help_names_the_command(deltallm: Run, command: tuple[str, ...]) -> None:
    outcome = deltallm(*command, "--help")
    assert outcome.code == 0
    assert " ".join(("Usage: deltallm-onnx", *command)) in outcome.out


def test_rewrite_reports_what_it_wrote(dense: Path, deltallm: Run) -> None:
    out = dense.with_name("out.onnx")
    text = deltallm("rewrite", dense, out)
    assert (text.code, text.err) == (0, "")
    assert f"{LAYERS}/{LAYERS} attention layers rewritten" in text.out
    report = deltallm("rewrite", dense, out, "--json").json
    assert report["path"] == str(out)
    assert report["rewrite"]["rewritten"] == LAYERS
    assert report["config"] == config_of(out)


def test_options_go_before_the_file_and_the_file_before_the_profile(dense: Path, deltallm: Run) -> None:
    out, file = dense.with_name("out.onnx"), dense.with_name("settings.json")
    file.write_text('{"sinks": 3, "threshold": 0.5}')
    said = ("--profile", "paper", "--context", "400", "--config", file, "--threshold", "0.75")
    assert deltallm("rewrite", dense, out, *said).code == 0
    config = config_of(out)
    assert (config["threshold"], config["sinks"], config["window"]) == (0.75, 3, 20)
    assert (config["granularity"], config["prefill"]) == ("element", "delta")


def test_every_knob_reaches_the_model(dense: Path, deltallm: Run) -> None:
    out = dense.with_name("out.onnx")
    knobs: dict[str, object] = {
        "threshold": 0.125,
        "window": 17,
        "sinks": 2,
        "granularity": "row",
        "row_rule": "absolute",
        "refresh": 9,
        "v_skip": 0.01,
        "prefill": "delta",
        "cache_format": "float16",
        "prefill_compute": "int8",
    }
    names = {**{name: name.replace("_", "-") for name in knobs}, "row_rule": "rule"}
    options = [word for name, value in knobs.items() for word in (f"--{names[name]}", str(value))]
    assert deltallm("rewrite", dense, out, *options).code == 0
    assert config_of(out) == knobs


@pytest.mark.parametrize(("window", "tokens"), [("7%", 21), ("0%", 0), ("0.1%", 1), (" 12 ", 12), ("100%", 300)])
def test_a_share_of_the_context_is_rounded_up(dense: Path, deltallm: Run, window: str, tokens: int) -> None:
    (dense.parent / "config.json").write_text('{"max_position_embeddings": 300}')
    out = dense.with_name("out.onnx")
    assert deltallm("rewrite", dense, out, "--window", window, "--cache-format", "float32").code == 0
    assert config_of(out)["window"] == tokens
    assert deltallm("rewrite", dense, out, "--window", "10%", "--context", "77").code == 0
    assert config_of(out)["window"] == 8


def test_inspect_lists_the_sites_of_both_forms(dense: Path, delta: Path, deltallm: Run) -> None:
    for path, op, threshold, row_bytes in (
        (dense, "ai.onnx::Attention", None, 4),
        (delta, "ai.deltallm::DeltaAttention", [pytest.approx(1.3)] * 2, 2),
    ):
        found = deltallm("inspect", path, "--json").json
        assert [site["layer"] for site in found["sites"]] == list(range(LAYERS))
        for site in found["sites"]:
            assert site["op"] == op
            assert (site["num_heads"], site["kv_num_heads"], site["head_size"]) == (QUERY_HEADS, KV_HEADS, HEAD_SIZE)
            assert site["threshold"] == threshold
        assert found["cache_bytes_per_token"] == LAYERS * 2 * KV_HEADS * HEAD_SIZE * row_bytes
        assert found["cache_bytes_per_row"] == found["cache_bytes_per_token"]
        assert Path(found["library"]).is_file()
        text = deltallm("inspect", path)
        assert (text.code, text.err) == (0, "")
        assert text.out.count(op) == LAYERS
    assert found["has_fallback"]
    assert found["needs_library"] == []
    assert found["sites"][0]["settings"]["delta_window"] == 5
    assert found["metadata"]["deltallm.config"]["sinks"] == 1


def test_inspect_does_not_read_weights(dense: Path, deltallm: Run) -> None:
    """With the weights' bytes replaced by holes of the same size, everything is still said."""
    stored = dense.with_name("stored.onnx")
    onnx.save(onnx.load(dense), stored, save_as_external_data=True, location="w.data", size_threshold=512)
    before = deltallm("inspect", stored).out
    data = dense.with_name("w.data")
    size = data.stat().st_size
    with data.open("wb") as file:
        file.truncate(size)
    assert deltallm("inspect", stored).out == before


def test_diff_tells_same_from_different(dense: Path, delta: Path, deltallm: Run) -> None:
    same = deltallm("diff", dense, dense)
    assert (same.code, same.err) == (0, "")
    changed = deltallm("diff", dense, delta)
    assert (changed.code, changed.err) == (1, "")
    assert "DeltaAttention" in changed.out
    assert deltallm("diff", dense, dense, "--json").json["is_empty"] is True
    outcome = deltallm("diff", dense, delta, "--json")
    assert outcome.code == 1
    assert outcome.json["is_empty"] is False


def test_diff_leaves_out_what_it_is_told_to(dense: Path, deltallm: Run) -> None:
    model = onnx.load(dense)
    model.metadata_props.add(key="author", value="someone")
    onnx.save(model, dense.with_name("signed.onnx"))
    assert deltallm("diff", dense, dense.with_name("signed.onnx")).code == 1
    assert deltallm("diff", dense, dense.with_name("signed.onnx"), "--ignore", "metadata").code == 0


def test_run_streams_the_text_and_reports_on_stderr(delta: Path, deltallm: Run) -> None:
    outcome = deltallm("run", delta, *PROMPT)
    assert outcome.code == 0
    report = deltallm("run", delta, *PROMPT, "--json")
    assert (report.code, report.err) == (0, "")
    assert outcome.out == report.json["text"] + "\n"
    assert len(report.json["tokens"]) == 24
    for word in ("prefill: 11 tokens", "decode: 24 tokens", "cache: ", "delta_sparsity", "kv_bytes_read"):
        assert word in outcome.err
    tokens = 11 + 24 - 1
    assert report.json["cached_tokens"] == tokens
    assert report.json["cache_bytes_in_use"] == tokens * LAYERS * 2 * KV_HEADS * HEAD_SIZE * 2
    counters = report.json["counters"]
    assert counters["kv_bytes_per_token"] == 2 * KV_HEADS * HEAD_SIZE * 2
    assert counters["delta_sparsity"] > 0, "θ = 1.3 was to hold some rows"


def test_run_says_why_there_are_no_counters(dense: Path, deltallm: Run) -> None:
    assert "counters: none, the model is dense" in deltallm("run", dense, *PROMPT).err
    bare = dense.with_name("bare.onnx")
    assert deltallm("rewrite", dense, bare, "--no-statistics").code == 0
    assert "counters: none, the model was written with --no-statistics" in deltallm("run", bare, *PROMPT).err
    assert deltallm("run", bare, *PROMPT, "--json").json["counters"] is None


def test_run_notes_a_context_that_is_too_short(dense: Path, deltallm: Run) -> None:
    (dense.parent / "config.json").write_text('{"max_position_embeddings": 34}')
    assert "note: 11 + 24 tokens are more than the 34" in deltallm("run", dense, *PROMPT).err
    (dense.parent / "config.json").write_text('{"max_position_embeddings": 35}')
    assert "note:" not in deltallm("run", dense, *PROMPT).err


def test_run_stops_at_the_end_token(dense: Path, deltallm: Run) -> None:
    tokens = deltallm("run", dense, *PROMPT, "--json").json["tokens"]
    (dense.parent / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokens[5]]}))
    report = deltallm("run", dense, *PROMPT, "--json").json
    assert report["stop"] == "eos"
    assert report["tokens"] == tokens[: tokens.index(tokens[5]) + 1]


def test_sampling_options_reach_the_sampler(dense: Path, deltallm: Run) -> None:
    def tokens(*options: str) -> list[int]:
        found = deltallm("run", dense, *PROMPT, *options, "--json").json["tokens"]
        assert isinstance(found, list)
        return found

    greedy = tokens()
    hot = tokens("--temperature", "3", "--seed", "1")
    assert hot != greedy
    assert tokens("--temperature", "3", "--seed", "1") == hot
    assert tokens("--temperature", "3", "--seed", "2") != hot
    assert tokens("--temperature", "3", "--top-k", "1") == greedy
    assert tokens("--temperature", "3", "--top-p", "0.0001") == greedy


def test_exact_settings_say_what_the_dense_model_says(dense: Path, deltallm: Run) -> None:
    expected = deltallm("run", dense, *PROMPT, "--json").json["tokens"]
    exact = dense.with_name("exact.onnx")
    assert deltallm("rewrite", dense, exact, "--profile", "exact", "--window", "4").code == 0
    assert deltallm("run", exact, *PROMPT, "--json").json["tokens"] == expected
    without = deltallm("run", exact, *PROMPT, "--no-library", "--json").json
    assert without["tokens"] == expected
    assert without["operator_library"] is False


def test_rewritten_models_say_the_same_with_and_without_the_library(delta: Path, deltallm: Run) -> None:
    with_library = deltallm("run", delta, *PROMPT, "--json").json
    without = deltallm("run", delta, *PROMPT, "--no-library", "--json").json
    assert with_library["tokens"] == without["tokens"]
    assert with_library["counters"] == pytest.approx(without["counters"])


def test_unfused_models_run(dense: Path, deltallm: Run) -> None:
    unfused = dense.with_name("unfused.onnx")
    fused = dense.with_name("fused.onnx")
    options = ("--window", "5", "--threshold", "1.3", "--cache-format", "float32")
    assert deltallm("rewrite", dense, fused, *options).code == 0
    assert deltallm("rewrite", dense, unfused, *options, "--unfused").code == 0
    ops = {node.op_type for node in onnx.load(unfused).graph.node}
    assert {"DeltaThreshold", "HybridWindowAttention"} <= ops
    results = [deltallm("run", path, *PROMPT, "--json").json for path in (fused, unfused)]
    assert results[0]["tokens"] == results[1]["tokens"]
    assert results[0]["counters"] == pytest.approx(results[1]["counters"])


def test_convert_then_run(tmp_path: Path, deltallm: Run) -> None:
    """From a Hugging Face directory to text, with the window as a share of the model's own context."""
    source, out = tmp_path / "hf", tmp_path / "out.onnx"
    save_tiny("llama", source)
    tiny_tokenizer().save(str(source / "tokenizer.json"))
    report = deltallm("convert", source, out, "--window", "10%", "--json")
    assert report.code == 0, report
    assert report.json["config"]["window"] == 13  # 10 % of 130, rounded up
    outcome = deltallm("run", out, "--prompt", "hello", "--max-new-tokens", "20")
    assert outcome.code == 0, outcome
    assert "delta_sparsity" in outcome.err


def test_the_program_starts_as_a_process(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point of pyproject.toml: exit codes and streams as the shell sees them, without a terminal."""
    code = "from deltallm_onnx.cli import main; main()"
    root = Path(__file__).parents[2]

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)

    good = start("inspect", str(dense), "--json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["path"] == str(dense)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert start("inspect", str(dense)).returncode == 0, "a terminal without θ is no reason to stop"
    bad = start("inspect", "nope.onnx")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: There is no file nope.onnx")
    shutil.copy(dense, dense.with_name("other.onnx"))
    assert start("diff", str(dense), str(dense.with_name("other.onnx"))).returncode == 0


def test_a_bug_of_ours_is_told_as_one(dense: Path, deltallm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("deltallm_onnx.cli.inspect.inspect_model", broken)
    monkeypatch.delenv("DELTALLM_DEBUG", raising=False)
    outcome = deltallm("inspect", dense)
    assert outcome.code == 70
    assert outcome.err.startswith("error: This is a bug in deltallm-onnx (ZeroDivisionError: oops)")
    assert outcome.err.count("\n") == 1
    monkeypatch.setenv("DELTALLM_DEBUG", "1")
    assert "Traceback" in deltallm("inspect", dense).err
