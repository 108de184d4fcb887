"""One study in a storage: made once, joined by whoever measures the same, and worked on until enough is finished."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.sweep.objectives import Objective

#: A study's attribute that says what it measures; whoever differs in it may not join.
IDENTITY = "deltallm"
#: How long the maker of a study may take to say what it measures before another process does, in seconds.
_MAKING_SECONDS, _POLL_SECONDS = 20.0, 0.2

#: Of a digest in a sentence.
_DIGITS = 12
#: A trial's attribute: the number of the interrupted one that it measures again.
AGAIN = "deltallm again"

SAMPLERS = ("tpe", "nsga2", "random")


def make_or_join(
    storage: optuna.storages.BaseStorage,
    name: str,
    *,
    identity: Mapping[str, Any],
    objectives: Sequence[Objective],
    first: Sequence[Mapping[str, Any]],
) -> tuple[optuna.Study, bool]:
    """The study of this name, made if it is missing.

    Args:
        storage: where it lies.
        name: of the study.
        identity: JSON-ready; all that its numbers depend on, and that must be the same in all processes.
        objectives: what it is for.
        first: parameters of the trials to begin with.

    Returns:
        The study, and whether this process made it.

    Raises:
        DeltaLLMError: where a study of this name measures something else.
    """
    directions = [objective.direction for objective in objectives]
    try:
        # The storage lets one process alone make it; all others join.
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        return join(storage, name, identity=identity, first=first), False
    _begin(study, identity, first)
    return study, True


def join(
    storage: optuna.storages.BaseStorage,
    name: str,
    *,
    identity: Mapping[str, Any],
    first: Sequence[Mapping[str, Any]] = (),
) -> optuna.Study:
    """A study that is there; the arguments are those of `make_or_join`.

    Raises:
        DeltaLLMError: where there is none, and where it measures something else.
    """
    try:
        study = optuna.load_study(storage=storage, study_name=name)
    except KeyError:
        raise DeltaLLMError(f"There is no study {name!r} in the storage: run it with --trials above 0.") from None
    deadline = time.monotonic() + _MAKING_SECONDS
    while (found := study.user_attrs.get(IDENTITY)) is None:
        if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
            raise DeltaLLMError(f"The study {name!r} in the storage is none of deltallm-onnx: give another --study.")
        if time.monotonic() > deadline:
            # Its maker died within its first moments.
            _begin(study, identity, first)
        time.sleep(_POLL_SECONDS)
    _refuse_other(name, found, identity)
    return study


def _begin(study: optuna.Study, identity: Mapping[str, Any], first: Sequence[Mapping[str, Any]]) -> None:
    """The identity comes last: who sees it finds everything else."""
    for parameters in first:
        study.enqueue_trial(dict(parameters), skip_if_exists=True)
    study.set_user_attr(IDENTITY, dict(identity))


def _refuse_other(name: str, found: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise DeltaLLMError(f"The study {name!r} in the storage is none of deltallm-onnx: give another --study.")
    for key in dict.fromkeys([*wanted, *found]):
        if found.get(key) != wanted.get(key):
            raise DeltaLLMError(
                f"The study {name!r} was made with {key} {_brief(key, found.get(key))}, and this run has "
                f"{_brief(key, wanted.get(key))}: use the same, or give another --study."
            )


def _brief(key: str, value: Any) -> str:
    if key.endswith("sha256") and isinstance(value, str):
        return value[:_DIGITS]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 100 else f"{text[:97]}…"


def sampler(name: str, seed: int | None) -> optuna.samplers.BaseSampler:
    """A sampler for several objectives.

    Args:
        name: of SAMPLERS.
        seed: of its draws; None draws one. Processes that work on one study must not share a seed: they would try the
            same candidates.

    Raises:
        DeltaLLMError: for an unknown name.
    """
    chosen = seed if seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
    if name == "tpe":
        # With constant_liar, what other processes are trying just now is avoided.
        return optuna.samplers.TPESampler(seed=chosen, multivariate=True, constant_liar=True)
    if name == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=chosen)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=chosen)
    raise DeltaLLMError(f"There is no sampler {name!r}: choose one of {', '.join(SAMPLERS)}.")


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Its finished trials, in order of their numbers."""
    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def cut_off(study: optuna.Study) -> dict[int, FrozenTrial | None]:
    """Trials that ended without a result, by number, each with the last one that tries the same again, if any."""
    trials: list[FrozenTrial] = study.get_trials(deepcopy=False)
    follower: dict[int, FrozenTrial] = {}
    for trial in trials:
        # Optuna's own list names those whose processes died.
        before = [*trial.system_attrs.get("retry_history", ()), trial.user_attrs.get(AGAIN)]
        follower |= {number: trial for number in before if isinstance(number, int) and number < trial.number}

    def last(number: int) -> FrozenTrial | None:
        found = None
        while (following := follower.get(number)) is not None:
            found, number = following, following.number
        return found

    return {trial.number: last(trial.number) for trial in trials if trial.state == TrialState.FAIL}


def work(
    study: optuna.Study,
    objective: Callable[[optuna.Trial], tuple[float, ...]],
    *,
    trials: int,
    timeout: float | None,
    on_trial: Callable[[FrozenTrial, int], None],
) -> None:
    """Run trials until the study has enough finished ones.

    Args:
        study: to work on.
        objective: measures one trial.
        trials: finished ones wanted, those of all processes together; one per further process may come on top.
        timeout: seconds after which no further one begins; None sets no limit.
        on_trial: called with each trial finished here, and the number of all.

    Raises:
        KeyboardInterrupt: on Ctrl-C; what was running waits to be tried again.
        DeltaLLMError: from the objective.
    """
    if len(finished(study)) >= trials:
        return

    def told(working: optuna.Study, trial: FrozenTrial) -> None:
        count = len(finished(working))
        if trial.state == TrialState.COMPLETE:
            on_trial(trial, count)
        if count >= trials:
            working.stop()

    def measured(trial: optuna.Trial) -> tuple[float, ...]:
        try:
            return objective(trial)
        except KeyboardInterrupt:
            study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
            raise

    study.optimize(measured, timeout=timeout, callbacks=[told])


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Nothing of Optuna's own log and warnings while the block runs."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", module="optuna")
            yield
    finally:
        optuna.logging.set_verbosity(before)
