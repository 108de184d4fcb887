"""Processes that are killed, interrupted, or share a study."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

PROGRAM = Path(__file__).parents[1] / "support" / "sweep_program.py"
GRACE = 2


def begin(settings: tuple[object, ...], event: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, PROGRAM, event, "sweep", "tiny.onnx", *settings, "--grace", GRACE, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=200)
    return process.returncode, out, errors


def trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(storage=f"sqlite:///{folder}/sweep.db", study_name="tiny").trials


def told(errors: str) -> list[int]:
    return [int(number) for number in re.findall(r"^trial (\d+):", errors, re.MULTILINE)]


def test_a_killed_study_goes_on_and_loses_nothing(folder: Path, sweep: Any, settings: tuple[object, ...]) -> None:
    """SIGKILL comes when trial 5 is measured and not yet told."""
    code, _, errors = end(begin(settings, "kill=6", "--trials", 20))
    assert code == -signal.SIGKILL
    assert told(errors) == [0, 1, 2, 3, 4]
    left = trials(folder)
    assert [t.state for t in left] == [TrialState.COMPLETE] * 5 + [TrialState.RUNNING]
    time.sleep(GRACE + 1)
    outcome = sweep("--trials", 7, "--grace", GRACE)
    assert outcome.code == 0, outcome
    after = trials(folder)
    assert after[:5] == left[:5], "finished trials are as they were"
    assert after[5].state == TrialState.FAIL
    assert after[6].params == after[5].params, "what was running is tried again"
    assert [t.number for t in after if t.state == TrialState.COMPLETE] == [0, 1, 2, 3, 4, 6, 7]
    assert "7 complete, 1 fail" in outcome.out
    assert outcome.out.splitlines()[-1] == "trial 5 was cut off and was measured again as trial 6"


def test_ctrl_c_keeps_what_is_finished(folder: Path, settings: tuple[object, ...]) -> None:
    code, out, errors = end(begin(settings, "interrupt=4", "--trials", 20, "--out", "s.json"))
    assert (code, out) == (130, "")
    assert told(errors) == [0, 1, 2]
    assert errors.splitlines()[-1].startswith("error: Interrupted: finished trials are in the storage, and the same ")
    assert errors.count("Interrupted") == 1
    assert "Traceback" not in errors
    left = trials(folder)
    kinds = [t.state for t in left]
    assert kinds.count(TrialState.COMPLETE) == 3
    assert kinds[3] == TrialState.FAIL
    waiting = [t.system_attrs["fixed_params"] for t in left if t.state == TrialState.WAITING]
    assert left[3].params in waiting
    assert not (folder / "s.json").exists()


@pytest.mark.parametrize("wanted", [15])
def test_two_processes_share_a_study(folder: Path, sweep: Any, settings: tuple[object, ...], wanted: int) -> None:
    """Each waits in its second trial until the other is in its second one."""
    one, two = folder / "one", folder / "two"
    processes = [begin(settings, f"meet={own},{other}", "--trials", wanted) for own, other in ((one, two), (two, one))]
    ends = [end(process) for process in processes]
    assert [code for code, _, _ in ends] == [0, 0], ends
    first, second = (told(errors) for _, _, errors in ends)
    assert len(first) >= 2
    assert len(second) >= 2
    found = trials(folder)
    complete = [t for t in found if t.state == TrialState.COMPLETE]
    assert sorted([*first, *second]) == [t.number for t in complete], "nobody's trial is another's"
    assert wanted <= len(complete) <= wanted + 1
    queued = [t.system_attrs["fixed_params"] for t in found if "fixed_params" in t.system_attrs]
    assert len(queued) == 5, "one of the two made the study"
    free = [tuple(t.params.values()) for t in complete[5:]]
    assert len(set(free)) == len(free), "they do not try the same"
    assert f"{len(complete)} complete" in sweep("--trials", 0).out
