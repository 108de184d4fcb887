"""`inspect --context` and `run --max-memory`, as a user sees them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import onnxruntime as ort
import pytest
from support.command_line import Outcome, run_here
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx import DeltaConfig
from deltallm_onnx.bench import resident_bytes
from deltallm_onnx.byte_size import parse_bytes
from deltallm_onnx.cli.memory import check_max_memory
from deltallm_onnx.convert import rewrite
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.memory.plan import plan_memory
from deltallm_onnx.runtime.session_settings import LOW_MEMORY, SessionSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dense = save_tiny_decoder(tmp_path_factory.mktemp("model"))
    path = dense.with_name("delta.onnx")
    rewrite(dense, path, DeltaConfig(threshold=0.7, window=9, sinks=1, cache_format="int8"))
    (dense.parent / "config.json").write_text(json.dumps({"max_position_embeddings": 120}))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    return run_here(capsys, *arguments)


def test_every_part_has_its_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "inspect", model, "--context", 100, "--batch", 3, "--prompt-chunk", 16)
    assert outcome.code == 0, outcome
    lines = outcome.out.splitlines()
    begin = lines.index("memory for 100 tokens, batch 3, 16 tokens per call, beside the program itself:")
    names = [line.split("  ")[1] for line in lines[begin + 1 :]]
    assert names == ["weights", "caches", "logits", "activations", "ONNX Runtime", "peak"]
    assert "[3, 16, 29]" in lines[begin + 3]
    assert "int8" in lines[begin + 2]


def test_more_tokens_than_the_model_was_made_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "note:" not in run(capsys, "inspect", model, "--context", 120).out
    said = run(capsys, "inspect", model, "--context", 121).out.splitlines()[-1]
    assert said == "note: 121 tokens are more than the 120 the model was made for."


def test_json_has_the_plan_where_it_was_asked_for(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "memory_plan" not in run(capsys, "inspect", model, "--json").json
    plan = run(capsys, "inspect", model, "--json", "--context", 77).json["memory_plan"]
    assert plan == json.loads(json.dumps(plan_memory(model, 77).to_dict()))
    parts = ("runtime_bytes", "cache_bytes", "cache_copy_bytes", "arena_bytes")
    weights = plan["weights"]["data_files"] + 2 * plan["weights"]["inside"] + plan["weights"]["laid_out"]
    call = plan["call"]["logits"] + plan["call"]["activations"]
    assert plan["running_bytes"] == weights + call + sum(plan[name] for name in parts)
    assert plan["total_bytes"] == max(plan["running_bytes"], plan["opening_bytes"])


PROMPT = ("--prompt", "a longer text of some letters", "--max-new-tokens", 9)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "--context", 0), "context is 0: give a whole number of at least 1"),
        (("inspect", "--context", -3), "context is -3: give a whole number of at least 1"),
        (("inspect", "--batch", 2), "--batch 2 plans no memory without a context: give --context TOKENS too"),
        (("inspect", "--prompt-chunk", 8), "--prompt-chunk 8 plans no memory without a context"),
        (("run", *PROMPT, "--max-memory", "512"), r"max-memory is '512': give a positive number with a unit \("),
        (("run", *PROMPT, "--max-memory", "-1GB"), "max-memory is '-1GB': give a positive number with a unit"),
        (("run", *PROMPT, "--max-memory", "0MB"), "max-memory is '0MB': give a positive number with a unit"),
        (("run", *PROMPT, "--max-memory", "1GB", "--no-library"), "leave out --no-library, or the limit"),
        (("run", *PROMPT, "--prompt-chunk", 0), "prompt-chunk is 0: give a whole number of at least 1"),
        (("run", *PROMPT, "--prompt-chunk", 0, "--max-memory", "1TB"), "prompt-chunk is 0: give a whole number"),
    ],
)
def test_wrong_input(
    model: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], sentence: str
) -> None:
    outcome = run(capsys, arguments[0], model, *arguments[1:])
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert re.search(f"^error: .*{sentence}", outcome.err)
    assert outcome.err.count("\n") == 1


def test_a_limit_below_the_plan_is_refused_before_the_start(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = run(capsys, "run", model, *PROMPT, "--max-memory", "20MB")
    assert outcome.code == 2, outcome
    assert re.fullmatch(
        rf"error: {re.escape(str(model))} takes up to [\d.]+ [MG]B for 37 tokens, and max-memory is 20 MB \("
        r"weights [\d.]+ kB, caches [\d.]+ kB, logits of 29 tokens per call [\d.]+ kB, "
        r"their activations [\d.]+ kB, ONNX Runtime 18 MB, this program [\d.]+ [MG]B\): [^.]+\.\n",
        outcome.err,
    )


@pytest.mark.parametrize(
    ("chunk", "room", "advice"),
    [
        (None, 42_000_000, "what would take less: a --prompt-chunk below 200000"),
        (50, 42_000_000, r"what would take less: a shorter context or an int4 cache\.$"),
        (50, 9_000_000, r"allow more, for no setting of the model takes so little\.$"),
    ],
)
def test_advice_names_what_weighs_most(model: Path, chunk: int | None, room: int, advice: str) -> None:
    """Of a text so long that logits, activations and caches (36 MB) outweigh ONNX Runtime (18 MB)."""
    limit = f"{(resident_bytes() or 0) + room}B"
    with pytest.raises(DeltaLLMError, match=advice):
        check_max_memory(model, limit, prompt_tokens=200_000, max_new_tokens=1, prompt_chunk=chunk, use_library=True)


def test_the_promise_holds_for_the_whole_program(model: Path) -> None:
    """What a refusal names is enough: started with it, the program stays below it."""
    program = (
        "import sys\n"
        "from deltallm_onnx.bench import peak_resident_bytes\n"
        "from deltallm_onnx.cli.app import run\n"
        "code = run(sys.argv[1:])\n"
        "print('peak', peak_resident_bytes())\n"
        "sys.exit(code)\n"
    )

    def started(limit: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, "run", str(model), *map(str, PROMPT), "--max-memory", limit]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    refused = started("1MB")
    assert refused.returncode == 2
    found = re.search(r"takes up to ([\d.]+ MB)", refused.stderr)
    assert found
    # Rounded to four digits, and the program itself is not the same to the last page each time.
    limit = parse_bytes(found[1], "limit") + (1 << 20)
    allowed = started(f"{limit}B")
    assert allowed.returncode == 0, allowed.stderr
    peak = int(allowed.stdout.split()[-1])
    assert 0.5 * limit < peak <= limit


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("512MB", 512_000_000),
        ("1.5 GB", 1_500_000_000),
        ("64MiB", 64 << 20),
        ("3gib", 3 << 30),
        (" 700 kB ", 700_000),
        ("17B", 17),
        ("2TiB", 2 << 40),
    ],
)
def test_amounts(text: str, count: int) -> None:
    assert parse_bytes(text, "x") == count


@pytest.mark.parametrize("text", ["", "MB", "12", "12 XB", "1e3MB", "-2GB", "0.0001B", "1,5GB", "٣MB", "9" * 400 + "B"])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(DeltaLLMError, match=r"limit is .*: give a positive number with a unit"):
        parse_bytes(text, "limit")


def test_settings_that_save_memory_change_no_token(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a prompt no longer than the window, of which no chunk reads a held key."""
    command = ("run", model, "--prompt", "abc def", "--max-new-tokens", 23, "--json")
    whole = run(capsys, *command).json
    spared = run(capsys, *command, "--low-memory", "--prompt-chunk", 3, "--max-memory", "64GB").json
    assert spared["tokens"] == whole["tokens"]
    assert spared["cache_bytes_in_use"] == whole["cache_bytes_in_use"]


def test_session_settings_reach_the_session() -> None:
    options = ort.SessionOptions()
    LOW_MEMORY.apply(options)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (False, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.disable_prepacking") == "0"
    SessionSettings(prepacking=False).apply(options)
    assert (options.enable_cpu_mem_arena, options.enable_mem_pattern) == (True, True)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
