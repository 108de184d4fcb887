"""A study: made once, joined by its equals only, worked on until there is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.attention_plan import LayerGeometry
from deltallm_onnx.calibration.allocate import Curve, Point
from deltallm_onnx.sweep import study as study_module
from deltallm_onnx.sweep.curves import load_curves, save_curves
from deltallm_onnx.sweep.objectives import find_objectives
from deltallm_onnx.sweep.storage import MOST_RETRIES, Storage
from deltallm_onnx.sweep.study import cut_off, finished, join, make_or_join, quiet_optuna, sampler, work

OBJECTIVES = find_objectives(())
IDENTITY = {"model sha256": "ab", "window_tokens": 64, "choices of windows": [8, 19]}
FIRST = [{"x": 0.25}, {"x": 0.75}]


@pytest.fixture
def storage(tmp_path: Path) -> Any:
    return Storage(f"sqlite:///{tmp_path}/s.db", grace=60).open()


def made(storage: Any, **changes: Any) -> tuple[optuna.Study, bool]:
    own = {"identity": IDENTITY, "objectives": OBJECTIVES, "first": FIRST} | changes
    return make_or_join(storage, "s", **own)


def objective(trial: optuna.Trial) -> tuple[float, float]:
    x = trial.suggest_float("x", 0, 1)
    return x, 1 - x


def run(study: optuna.Study, trials: int, function: Any = objective, **changes: Any) -> list[tuple[int, int]]:
    told: list[tuple[int, int]] = []
    with quiet_optuna():
        work(
            study,
            function,
            trials=trials,
            timeout=changes.pop("timeout", None),
            on_trial=lambda trial, count: told.append((trial.number, count)),
        )
    return told


def test_the_first_makes_it_and_the_others_join(storage: Any) -> None:
    study, first = made(storage)
    other, second = made(storage)
    assert (first, second) == (True, False)
    assert other.study_name == study.study_name
    assert [trial.system_attrs["fixed_params"] for trial in other.trials] == FIRST, "queued once"
    assert [d.name for d in study.directions] == ["MINIMIZE", "MINIMIZE"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model sha256": "cd" * 32}, "made with model sha256 ab, and this run has cdcdcdcdcdcd:"),
        ({"choices of windows": [8]}, "made with choices of windows 8, 19, and this run has 8"),
        ({"past": 10}, "made with past None, and this run has 10"),
    ],
)
def test_who_measures_something_else_may_not_join(storage: Any, changes: dict[str, Any], sentence: str) -> None:
    made(storage)
    with pytest.raises(DeltaLLMError, match=sentence):
        made(storage, identity=IDENTITY | changes)
    with pytest.raises(DeltaLLMError, match="made with window_tokens 64, and this run has None"):
        made(storage, identity={k: v for k, v in IDENTITY.items() if k != "window_tokens"})


def test_a_study_of_another_program_is_left_alone(storage: Any) -> None:
    foreign = optuna.create_study(storage=storage, study_name="s", directions=["minimize", "minimize"])
    with quiet_optuna():
        foreign.optimize(objective, n_trials=1)
    with pytest.raises(DeltaLLMError, match="is none of deltallm-onnx"):
        made(storage)
    foreign.set_user_attr("deltallm", "something")
    with pytest.raises(DeltaLLMError, match="is none of deltallm-onnx"):
        made(storage)


def test_a_study_whose_maker_died_at_once_is_taken_over(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_MAKING_SECONDS", 0.1)
    begun = optuna.create_study(storage=storage, study_name="s", directions=["minimize", "minimize"])
    begun.enqueue_trial(FIRST[0])
    study, first = made(storage)
    assert not first
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == FIRST
    assert study.user_attrs["deltallm"] == IDENTITY


def test_a_study_that_is_not_there_cannot_be_joined(storage: Any) -> None:
    with pytest.raises(DeltaLLMError, match="There is no study 's'"):
        join(storage, "s", identity=IDENTITY)


def test_trials_are_counted_over_all_runs(storage: Any) -> None:
    study, _ = made(storage)
    study.sampler = sampler("random", 5)
    assert run(study, 3) == [(0, 1), (1, 2), (2, 3)]
    assert [trial.params["x"] for trial in finished(study)][:2] == [0.25, 0.75]
    other, _ = made(storage)
    assert run(other, 5) == [(3, 4), (4, 5)]
    assert run(other, 5) == []
    assert run(other, 100, timeout=1e-9) == []


@pytest.mark.parametrize("name", study_module.SAMPLERS)
def test_samplers_are_seeded(tmp_path: Path, name: str) -> None:
    def drawn(database: str, seed: int | None) -> list[float]:
        study, _ = made(Storage(f"sqlite:///{tmp_path}/{database}.db", grace=60).open(), first=[])
        with quiet_optuna():
            study.sampler = sampler(name, seed)
        run(study, 4)
        return [trial.params["x"] for trial in finished(study)]

    one, two, three, four = drawn("a", 7), drawn("b", 7), drawn("c", None), drawn("d", None)
    assert one == two
    assert len({tuple(one), tuple(three), tuple(four)}) == 3


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(DeltaLLMError, match="no sampler 'best': choose one of tpe"):
        sampler("best", 0)


def test_what_an_interrupt_stopped_waits_to_be_tried_again(storage: Any) -> None:
    study, _ = made(storage, first=[{"x": 0.25}])

    def interrupted(trial: optuna.Trial) -> tuple[float, float]:
        trial.suggest_float("x", 0, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, 2, interrupted)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert _again(study) == {0: (1, TrialState.WAITING)}
    with pytest.raises(KeyboardInterrupt):
        run(study, 2, interrupted)
    run(study, 1)
    assert finished(study)[0].params == {"x": 0.25}
    assert _again(study) == {0: (2, TrialState.COMPLETE), 1: (2, TrialState.COMPLETE)}


def _again(study: optuna.Study) -> dict[int, tuple[int, TrialState] | None]:
    return {number: trial and (trial.number, trial.state) for number, trial in cut_off(study).items()}


def test_what_a_database_says_of_trials_that_go_before_cannot_lead_in_circles(storage: Any) -> None:
    study, _ = made(storage, first=[])
    for before in (1, 7, "x"):
        study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={study_module.AGAIN: before}))
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={study_module.AGAIN: 1}))
    assert _again(study) == {0: None, 1: (3, TrialState.FAIL), 2: None, 3: None}


def test_a_trial_whose_process_is_silent_is_tried_again_but_not_for_ever(storage: Any) -> None:
    study, _ = made(storage, first=[{"x": 0.25}])
    for _ in range(MOST_RETRIES + 1):
        with quiet_optuna():
            trial = study.ask()
        assert trial.suggest_float("x", 0, 1) == 0.25
        storage.record_heartbeat(trial._trial_id)
        with storage.engine.begin() as connection:  # the process was killed an hour ago
            connection.execute(sa.text("update trial_heartbeats set heartbeat = datetime(heartbeat, '-1 hour')"))
        with quiet_optuna():
            optuna.storages.fail_stale_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * (MOST_RETRIES + 1)
    last = (MOST_RETRIES, TrialState.FAIL)
    assert _again(study) == {**dict.fromkeys(range(MOST_RETRIES), last), MOST_RETRIES: None}


CURVES = [
    Curve(3, "query", (0,), (Point((0.0,), 0.0, 0.0), Point((0.1 + 0.2,), 0.3, 1e-5))),
    Curve(3, "query", (1,), (Point((0.0,), 0.0, 0.0),)),
    Curve(5, "query", (0, 1), (Point((0.5, 1.5), 0.25, 0.125),)),
]
GEOMETRY = [LayerGeometry(3, 4, 2, 8), LayerGeometry(5, 4, 2, 8)]


def test_curves_come_back_as_they_were(storage: Any) -> None:
    study, _ = made(storage)
    assert load_curves(study, "row query", GEOMETRY) is None
    save_curves(study, "row query", CURVES[:2])
    assert load_curves(study, "row query", GEOMETRY) is None, "one layer is missing"
    save_curves(study, "row query", CURVES)
    other, _ = made(storage)
    assert load_curves(other, "row query", GEOMETRY) == CURVES
    assert load_curves(other, "element query", GEOMETRY) is None


@pytest.mark.parametrize(
    "change",
    [
        {"layer": 4},
        {"heads": [2]},
        {"heads": []},
        {"points": []},
        {"points": [{"alphas": [0.1, 0.2], "gain": 0.0, "cost": 0.0}]},
        {"points": [{"alphas": [float(np.inf)], "gain": 0.0, "cost": 0.0}]},
        {"points": [{"alphas": [0.1], "gain": 0.0, "cost": -1.0}]},
        {"points": [{"alphas": [0.1], "gain": 0.0}]},
        {"points": 7},
    ],
)
def test_curves_of_something_else_are_refused(storage: Any, change: dict[str, Any]) -> None:
    study, _ = made(storage)
    save_curves(study, "row query", CURVES)
    bad = CURVES[0].to_dict() | change
    study.set_user_attr("deltallm curves: row query, layer 3", [bad])
    with pytest.raises(DeltaLLMError, match="curves of layer 3 that are none of this model"):
        load_curves(study, "row query", GEOMETRY)
