"""The scripts from the command line to the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import attention, whole_model


def test_attention_writes_a_record_per_suite_that_the_tables_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "machine_rates", lambda _threads: None)
    settings = ["--geometry", "Qwen2.5-0.5B", "--quick", "--seconds", "0", "--threads", "1", "--record", str(tmp_path)]
    attention.main(
        ["decode", "prompt", "--past", "90", "--prompt", "5", "--only", "GQA float32", "ours int8", *settings]
    )
    decode = json.loads((tmp_path / "attention-decode-Qwen2.5-0.5B.json").read_text())
    assert [row["name"] for row in decode["results"][0]["contenders"]] == ["GQA float32", "ours int8"]
    assert decode["geometry"] == {"name": "Qwen2.5-0.5B", "heads": 14, "kv_heads": 2, "head_size": 64}
    assert decode["delta"]["threshold"] == 0.6
    assert len(decode["library_sha256"]) == 64
    assert decode["machine_rates"] is None
    prompt = json.loads((tmp_path / "attention-prompt-Qwen2.5-0.5B.json").read_text())
    assert [row["name"] for row in prompt["results"][0]["contenders"]] == ["GQA float32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention-decode-Qwen2.5-0.5B.json",
        "attention-prompt-Qwen2.5-0.5B.json",
    ]
    assert "past 90, new 1, threads 1, thread CPU time" in capsys.readouterr().out


def test_nobody_to_measure_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "machine_rates", lambda _threads: None)
    with pytest.raises(SystemExit) as left:
        attention.main(["decode", "--quick", "--only", "GQA float31"])
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: No contender can run: none was chosen, see --only.\n"


def test_a_whole_model_is_written_measured_and_its_memory_taken(tmp_path: Path) -> None:
    past, steps = 61, 3
    names = ["GQA float32", "GQA int4", "ours float16"]
    sizes = ["--config", "toy", "--past", str(past), "--threads", "1", "--steps", str(steps)]
    folders = ["--folder", str(tmp_path / "models"), "--record", str(tmp_path)]
    whole_model.main([*sizes, *folders, "--only", *names])
    record = json.loads((tmp_path / "whole-model-toy.json").read_text())
    (result,) = record["results"]
    assert result["rounds"] == steps
    found = {row["name"]: row for row in result["contenders"]}
    assert list(found) == names
    # 3 layers, keys and values, 2 KV heads of 32 channels.
    room = past + steps + whole_model.WARM_UP_STEPS
    assert found["GQA float32"]["kv_bytes"] == 3 * 2 * 2 * 32 * 4 * room
    assert found["GQA int4"]["kv_bytes"] == 3 * 2 * 2 * 16 * room
    assert found["ours float16"]["kv_bytes"] == 3 * 2 * 2 * 32 * 2 * room
    for row in found.values():
        assert row["tokens_per_second"] == pytest.approx(1e3 / row["milliseconds"]["median"], rel=2e-3)
    assert set(found["ours float16"]["speedups"]) == {"GQA float32", found["ours float16"]["fastest_peer"]}
    assert [(row["name"], row["past_tokens"]) for row in record["memory"]] == [(name, past) for name in names]
    assert all(row["peak_resident_bytes"] > 10 * row["kv_bytes"] for row in record["memory"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "toy", "--past", "2000"], "error: past is 2000: the model has 1024 positions.\n"),
        (["--config", "toy", "--steps", "0"], "error: Tokens, threads and steps are counted from 1"),
        (["--config", "toy", "--record", "no/such"], "error: There is no folder no/such: make it first"),
    ],
)
def test_wrong_requests_of_a_whole_model_are_refused(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        whole_model.main(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)
