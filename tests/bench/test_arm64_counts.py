"""Instructions are counted where they are executed, and the committed counts are those of the published table."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import arm64_counts, instruction_counts
from bench.arm64_counts import Case, calls_of
from bench.arm64_counts_table import per_token_table
from bench.contenders import DECODE, delta
from bench.instruction_counts import KNOWN, PROCESSORS, Interval, check_known, count
from bench.tables import RECORDS
from deltallm_onnx.errors import DeltaLLMError

BEGIN, END = (f"77 close({-number}) = -1 errno=9 (Bad file descriptor)\n" for number in (1001, 1002))


def block(address: int, instructions: int) -> str:
    lines = [f"0x{address + 4 * i:08x}:  aa0003e1  mov x1, x0\n" for i in range(instructions)]
    return f"----------------\nIN: name\n{''.join(lines)}\n"


def executed(address: int, place: int) -> str:
    return f"Trace 0: 0x{place:x} [00000000/{address:016x}/00000000/ff00001] name\n"


@pytest.fixture(scope="module")
def counter() -> Path:
    return instruction_counts._programs()[1]


def counted(counter: Path, log: str) -> list[str]:
    done = subprocess.run([counter], input=log, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_blocks_count_as_often_as_they_are_executed(counter: Path) -> None:
    first, second = executed(0x550000, 0x7F01), executed(0x670000, 0x7F02)
    log = block(0x550000, 5) + first + BEGIN + first + block(0x670000, 3) + second * 4 + first + END + second
    assert counted(counter, log) == [f"{2 * 5 + 4 * 3} 6 55:10 67:12"]


def test_a_block_that_was_named_but_not_executed(counter: Path) -> None:
    stopped = "Stopped execution of TB chain before 0x7f01 [0000000000550000] name\n"
    log = BEGIN + block(0x550000, 5) + executed(0x550000, 0x7F01) + stopped + executed(0x550000, 0x7F01) + END
    assert counted(counter, log) == ["5 1 55:5"]


def test_a_block_that_is_translated_anew_where_another_lay(counter: Path) -> None:
    log = BEGIN + block(0x550000, 5) + executed(0x550000, 0x7F01) + block(0x670000, 3) + executed(0x670000, 0x7F01)
    log += block(0x550000, 2) + executed(0x550000, 0x7F09) + executed(0x670000, 0x7F01) + END + BEGIN + END
    assert counted(counter, log) == ["13 4 55:7 67:6", "0 0"]


@pytest.mark.parametrize("line", [executed(0x550000, 0x7F01), "Trace 0: strange\n"])
def test_a_log_that_does_not_hold_together_is_refused(counter: Path, line: str) -> None:
    done = subprocess.run([counter], input=BEGIN + line + END, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert line.strip() in done.stderr


@pytest.mark.parametrize("processor", PROCESSORS)
def test_known_intervals_under_qemu(processor: str, tmp_path: Path) -> None:
    found = count(processor, tmp_path / "plan", layers=False)
    assert len(found) == len(KNOWN)
    assert found[2].instructions - found[1].instructions == 2 * 49000
    assert 3000 <= found[3].instructions <= 3010
    assert all(interval.parts["operators"] == interval.parts["onnxruntime"] == 0 for interval in found)


def test_a_counter_that_is_wrong_is_noticed() -> None:
    right = [Interval(20 + n, {}) for n in KNOWN]
    assert [interval.instructions for interval in check_known(right)] == list(KNOWN)
    for place in (1, 2, 3):
        wrong = [*right]
        wrong[place] = Interval(right[place].instructions - 1, {})
        with pytest.raises(DeltaLLMError, match="The counter finds"):
            check_known(wrong)
    with pytest.raises(DeltaLLMError, match="The counter finds"):
        check_known(right[:2])


def test_pages_belong_to_the_libraries_that_lie_there() -> None:
    maps = (
        "7f0000000000-7f0000020000 r-xp 00000000 08:01 11 /a/libonnxruntime.so.1.32.0\n"
        "7f0000100000-7f0000110000 r-xp 00000000 08:01 12 /a/libdeltallm_ops.so\n"
        "7f0000200000-7f0000210000 rw-p 00000000 00:00 0\n"
    )
    pages = instruction_counts._pages(maps)
    interval = instruction_counts._interval("60 3 7f000000:4 7f000001:6 7f000010:20 7f000002:1 7f000020:29", pages)
    assert interval.parts == {"operators": 20, "onnxruntime": 10, "other": 30}


def test_a_row_takes_the_ordinary_call(tmp_path: Path) -> None:
    output = np.ones((1, 1, 6), np.float32)
    output.tofile(tmp_path / "output.bin")
    counts = [900, 101, 102, 100, 612, 103, 99, 102]
    intervals = [Interval(n, {"operators": n - 40, "onnxruntime": 40, "other": 0}) for n in counts]
    row = Case(delta("int4"), 1024, tmp_path, output * 2).row(intervals)
    assert (row["instructions"], row["calls"]) == (102, counts)
    assert row["parts"]["operators"] == 62
    assert row["difference_from_this_machine"] == pytest.approx(0.5)


def layer(name: str, past: int, instructions: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "past_tokens": past, "instructions": instructions, **more}


def test_the_table_shares_sealing_among_the_tokens_of_a_block() -> None:
    layers = [layer("GQA float32", 1000, 800_000), layer("GQA float32", 3000, 2_000_000)]
    for past, count_ in ((1000, 100_000), (3000, 200_000)):
        before, behind = count_ + 20_000, count_ - 20_000
        layers += [
            layer("ours int4", past, 1, calls=[10**9, before, before + 128_000, behind]),
            layer("ours int4, half held", past, count_),
        ]
    record = {"sealed_every": 128, "results": [{"processor": "p", "layers": layers}]}
    head, _, theirs, ours, held = per_token_table(record, "p").splitlines()
    assert head == "| p | 1000 past tokens | 3000 past tokens | per past token |"
    assert theirs == "| GQA float32 | 800 k (1×) | 2000 k (1×) | 600 |"
    assert ours == "| ours int4 | 101 k (7.92×) | 201 k (9.95×) | 50 |"
    assert held == "| ours int4, half held | 100 k (7.96×) | 200 k (9.98×) | 50 |"


def test_lengths_are_counted_from_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        arm64_counts.main(["--past", "0"])
    assert left.value.code == 2
    assert "past is 0: give 1 token or more." in capsys.readouterr().err


@pytest.fixture(scope="module")
def record() -> Any:
    return json.loads((RECORDS / "arm64-counts-Llama-3.2-1B.json").read_text(encoding="utf-8"))


def test_the_record_is_of_real_attention(record: Any) -> None:
    assert [result["processor"] for result in record["results"]] == list(PROCESSORS)
    contenders = {contender.name: contender for contender in DECODE}
    for result in record["results"]:
        loops = [known["counted"] for known in result["known"]]
        assert loops[2] - loops[1] == 2 * 49000
        for row in result["layers"]:
            # 8-bit rounding may fall the other way on the other architecture.
            assert row["difference_from_this_machine"] < 1e-2, row["name"]
            assert len(row["calls"]) == calls_of(contenders[row["name"]])


def test_the_record_says_that_counts_are_not_cycles(record: Any) -> None:
    assert "not cycles" in record["note"]
    assert not any("second" in key for result in record["results"] for row in result["layers"] for key in row)
