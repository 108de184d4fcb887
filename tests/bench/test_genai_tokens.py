"""The benchmark inside onnxruntime-genai, from the command line to the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import genai_tokens
from bench.genai_tokens import BEFORE, EXACT, SAME_TOKENS


def test_a_model_is_measured_before_and_after(tmp_path: Path) -> None:
    sizes = ["--config", "toy", "--past", "61", "97", "--threads", "1", "--steps", "3"]
    names = ["ours int8", "ours int4", EXACT]
    folders = ["--folder", str(tmp_path / "models"), "--record", str(tmp_path)]
    genai_tokens.main([*sizes, *folders, "--only", *names])
    record = json.loads((tmp_path / "genai-tokens-toy.json").read_text())
    assert [(result["past_tokens"], result["prompt_tokens"]) for result in record["results"]] == [
        (61, 61),
        (97, 97 - 61 - 3 - genai_tokens.WARM_UP_STEPS),
    ]
    for result in record["results"]:
        rows = {row["name"]: row for row in result["contenders"]}
        assert list(rows) == [BEFORE, *names]
        assert rows[BEFORE]["speedup"] == {"median": 1.0, "lower": 1.0, "upper": 1.0}
        for row in rows.values():
            assert row["tokens_per_second"] == pytest.approx(1e3 / row["milliseconds"]["median"], rel=2e-3)
            assert row["prompt_tokens_per_second"] > 0
        # 3 layers, keys and values, 2 KV heads of 32 channels, room for all that is read and generated
        tokens = genai_tokens.SAME_PROMPT + SAME_TOKENS + genai_tokens.WARM_UP_STEPS + 3
        assert rows[BEFORE]["kv_bytes"] == rows[EXACT]["kv_bytes"] == 3 * 2 * 2 * 32 * 4 * tokens
        assert rows["ours int8"]["kv_bytes"] == 3 * 2 * 2 * (32 + 4) * tokens
    assert record["configurations"]["ours int4"]["cache_format"] == "int4"
    assert record["configurations"][EXACT]["threshold"] == 0
    assert record["same_tokens"]["same_tokens"] == record["same_tokens"]["new_tokens"] == SAME_TOKENS
    assert record["same_tokens"]["distinct_tokens"] > SAME_TOKENS // 2
    assert record["versions"]["onnxruntime-genai"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--past", "2000"], "error: past is 2000: the model has 1024 positions.\n"),
        (["--past", "100", "110"], "error: --past [100, 110]: each must be more than 34 behind the last.\n"),
        (["--threads", "0"], "error: Tokens, threads and steps are counted from 1: give positive numbers.\n"),
        (["--record", "no/such"], "error: There is no folder no/such: make it first, or give another --record.\n"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        genai_tokens.main(["--config", "toy", *arguments])
    assert left.value.code == 2
    assert capsys.readouterr().err == sentence
