"""Packed caches from the command line: written, inspected, compared, run, and refused where they cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Outcome, files_below
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS

from deltallm_onnx.packed_sizes import bytes_per_token
from deltallm_onnx.runtime import ops_library_path

Run = Callable[..., Outcome]
PROMPT = ("--prompt", "hello world", "--max-new-tokens", "24")
SMALL = ("--window", "7", "--sinks", "1")


@pytest.mark.parametrize("cache_format", ["int8", "int4"])
def test_a_packed_model_is_written_inspected_and_run(dense: Path, deltallm: Run, cache_format: str) -> None:
    out = dense.with_name("packed.onnx")
    said = (*SMALL, "--threshold", "1.3", "--cache-format", cache_format, "--prefill-compute", "bfloat16")
    report = deltallm("rewrite", dense, out, *said)
    assert (report.code, report.err) == (0, "")
    assert f"no fallback function: {cache_format} caches are for the operator library alone" in report.out
    found = deltallm("inspect", out, "--json").json
    assert [site["head_size"] for site in found["sites"]] == [HEAD_SIZE] * LAYERS
    assert found["cache_bytes_per_token"] == LAYERS * 2 * KV_HEADS * bytes_per_token(cache_format, HEAD_SIZE)
    assert found["cache_bytes_per_row"] == LAYERS * 2 * KV_HEADS * (HEAD_SIZE + 4)
    assert found["metadata"]["deltallm.config"]["prefill_compute"] == "bfloat16"
    text = deltallm("inspect", out).out
    assert "needs the operator library for DeltaAttention" in text
    assert f"cache_format={cache_format}" in text
    row, token = LAYERS * 2 * KV_HEADS * (HEAD_SIZE + 4), found["cache_bytes_per_token"]
    summary = deltallm("run", out, *PROMPT).err
    if cache_format == "int8":
        assert row == token
        assert f"cache: {row} B per token, all layers\n" in text
        assert "sealed" not in summary
    else:
        assert f"cache: {token} B per token, all layers, in sealed blocks; {row} B in the sinks" in text
        assert f"per token, all layers ({token} B in sealed blocks): " in summary
    run = deltallm("run", out, *PROMPT, "--json").json
    assert len(run["tokens"]) == 24
    assert run["counters"]["delta_sparsity"] > 0
    assert 0 < run["cache_bytes_in_use"] <= run["cache_bytes_allocated"]
    without = deltallm("run", out, *PROMPT, "--no-library")
    assert without.code == 2
    assert without.err == f"error: {out} has no function body for DeltaAttention: run it with the operator library.\n"
    differences = deltallm("diff", dense, out)
    assert differences.code == 1
    assert f"cache_format='{cache_format}'" in differences.out


def test_what_cannot_be_packed_is_refused_and_nothing_written(dense: Path, deltallm: Run) -> None:
    before = files_below(dense.parent)
    for options, sentence in (
        (("--cache-format", "int8", "--unfused"), "cache_format int8 has no form in standard operators"),
        (("--cache-format", "int4", "--window", "5", "--sinks", "1"), "sinks + window is 6: cache_format int4 keeps"),
        (("--cache-format", "int5"), "cache_format is 'int5': choose one of float32, float16, int8, int4."),
        (("--prefill-compute", "fp8"), "prefill_compute is 'fp8': choose one of float32, bfloat16, int8."),
    ):
        outcome = deltallm("rewrite", dense, dense.with_name("out.onnx"), *options)
        assert outcome.code == 2
        assert sentence in outcome.err
        assert outcome.err.count("\n") == 1
    assert files_below(dense.parent) == before


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (("--cache-format", "int8"), "onnxruntime-genai loads"),
        (("--cache-format", "int8", "--no-copy-library"), "cannot run the model until the operator library"),
        (("--cache-format", "int4", "--context", "60"), "rows for 60 tokens"),
    ],
)
def test_genai_is_told_what_the_caches_are(dense: Path, deltallm: Run, options: tuple[str, ...], note: str) -> None:
    decoder = {"filename": dense.name, "head_size": HEAD_SIZE}
    genai = {"model": {"decoder": decoder, "context_length": 230}, "search": {"max_length": 50}}
    (dense.parent / "genai_config.json").write_text(json.dumps(genai))
    folder = dense.parents[1] / "packed"
    outcome = deltallm("rewrite", dense.parent, folder, *SMALL, *options)
    assert outcome.code == 0, outcome
    assert note in outcome.out
    decoder["head_size"] = bytes_per_token(options[1], HEAD_SIZE)
    library = ops_library_path().name
    if "--no-copy-library" not in options:
        decoder["session_options"] = {"custom_ops_library": library}
    assert (folder / library).is_file() == ("session_options" in decoder)
    if "--context" in options:
        genai["model"]["context_length"] = 60
    genai["search"]["past_present_share_buffer"] = True
    assert json.loads((folder / "genai_config.json").read_text()) == genai
