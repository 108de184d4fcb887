"""Smoke training through the command line: the loss falls, and a killed run goes on as if nothing had happened."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from errors import UserError
from train_support import command, run_script, step_losses, train_here

SMALL = (
    "--size", "tiny", "--batch-tokens", 1024, "--micro-tokens", 256, "--context", 32, "--long-context", 128,
    "--workers", 2, "--warmup", 5, "--validate-every", 20, "--validation-windows", 4,
)  # fmt: skip
STEPS = 60


def train(run: Path, *extra: object) -> None:
    train_here(run, *SMALL, *extra)


@pytest.fixture(scope="module")
def whole(fresh_run: Callable[[], Path]) -> dict[int, float]:
    """The losses of an uninterrupted float32 run."""
    run = fresh_run()
    train(run, "--steps", STEPS, "--precision", "float32")
    return step_losses(run)


def test_loss_falls(whole: dict[int, float]) -> None:
    assert sorted(whole) == list(range(1, STEPS + 1))
    assert whole[1] > 5.5  # about ln 320
    assert whole[STEPS] < 0.5 * whole[1]


@pytest.mark.parametrize(("how", "checkpoint_seconds"), [(signal.SIGKILL, 0), (signal.SIGTERM, 1000)])
def test_killed_run_resumes_with_the_same_losses(
    whole: dict[int, float], fresh_run: Callable[[], Path], how: signal.Signals, checkpoint_seconds: int
) -> None:
    run = fresh_run()
    settings = (*SMALL, "--steps", STEPS, "--precision", "float32", "--checkpoint-seconds", checkpoint_seconds)
    arguments = ("--out", run, *settings)
    with subprocess.Popen(command("train.py", *arguments), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (run / "log.jsonl").is_file() or max(step_losses(run), default=0) < STEPS // 3:
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline, "training made no progress"
            time.sleep(0.02)
        process.send_signal(how)
    assert max(step_losses(run)) < STEPS
    train(run, "--steps", STEPS, "--precision", "float32")
    assert step_losses(run) == pytest.approx(whole, rel=1e-6)
    starts = [line for line in (run / "log.jsonl").read_text().splitlines() if '"start"' in line]
    assert len(starts) == 2
    assert '"step": 0' not in starts[1], "the second start must go on from the checkpoint"


def test_resume_in_bfloat16_and_a_changed_plan(fresh_run: Callable[[], Path]) -> None:
    """A run planned for 60 steps, stopped before its decay and resumed for 30, is the run planned for 30."""
    direct, changed = fresh_run(), fresh_run()
    train(direct, "--steps", 30)
    train(changed, "--steps", 60, "--stop-after", 12)
    train(changed, "--steps", 30)
    assert step_losses(changed) == pytest.approx(step_losses(direct), rel=1e-6)


def test_seed_changes_the_run(whole: dict[int, float], fresh_run: Callable[[], Path]) -> None:
    run = fresh_run()
    train(run, "--steps", STEPS, "--stop-after", 2, "--precision", "float32", "--seed", 1)
    assert step_losses(run)[1] != whole[1]


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--steps", 0), "--steps is 0"),
        (("--steps", 10, "--context", 48), "context is 48"),
        (("--steps", 10, "--decay", 2), "--decay is 2.0"),
        (("--steps", 10, "--batch-tokens", 1000), "batch_tokens 1000"),
        (("--steps", 10, "--micro-tokens", 1024, "--long-context", 1024), "--long-context is 1024"),
    ],
)
def test_bad_plan_is_refused(fresh_run: Callable[[], Path], extra: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(fresh_run(), *extra)


def test_resuming_with_another_seed_is_refused(fresh_run: Callable[[], Path]) -> None:
    run = fresh_run()
    train(run, "--steps", 3)
    with pytest.raises(UserError, match="seed 0"):
        train(run, "--steps", 3, "--seed", 9)


def test_missing_run_folder_is_refused_in_one_sentence_with_exit_code_2(tmp_path: Path) -> None:
    done = run_script("train.py", "--out", tmp_path / "none", "--steps", 3)
    assert done.returncode == 2
    assert "no run folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
