"""Evaluates models on tasks of the harness."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime import TextTokenizer
from deltallm_onnx.tasks.harness import harness_session, harness_versions
from deltallm_onnx.tasks.modes import DEFAULT_MODE, open_token_model
from deltallm_onnx.tasks.paper import PaperReport
from deltallm_onnx.tasks.report import TaskReport, TaskScores
from deltallm_onnx.tasks.results import task_metrics

#: Resamples for the standard error of metrics that are no means; the harness's 100 000 take minutes.
_BOOTSTRAP_ITERATIONS = 1000

#: The harness's name for requests that are answered by text.
_GENERATES = "generate_until"

Progress = Callable[[str], None]


def run_tasks(
    model_path: Path,
    tasks: Sequence[str] = (),
    *,
    task_files: Mapping[str, Path] = MappingProxyType({}),
    task_folders: Sequence[Path] = (),
    limit: int | None = None,
    mode: str = DEFAULT_MODE,
    baseline: Path | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> TaskReport:
    """Evaluate a model on tasks, and maybe its baseline on the same items.

    Args:
        model_path: a dense or rewritten .onnx file.
        tasks: the harness's names, or names of tasks in `task_folders`; if empty, all of `task_files` and
            `task_folders`.
        task_files: items of tasks, by name, see `local_rows`; from the hub for the others.
        task_folders: folders with tasks of the user's own, see `local_folder`.
        limit: only the first so many items of each task.
        mode: where held keys are read, see `evaluation.reading.Mode`.
        baseline: another model, in most cases the dense one.
        tokenizer: folder of tokenizer.json and config.json for both models; that of each model if None.
        seed: of the harness's choices (none for these tasks without examples).
        threads: intra-op threads.
        progress: called with a line as work goes on.

    Raises:
        DeltaLLMError: for names, files and modes that do not exist or do not fit, where items cannot be loaded, and
            where a model cannot be run; before any model is opened, as far as it can be told.
    """
    asked = _Asked(tasks, task_files, task_folders, limit, tokenizer, seed, threads, progress or (lambda _line: None))
    asked.check_folders(model_path, baseline)
    with harness_session():
        loaded = _load(asked)
        if mode == "prefill":
            _refuse_generation(loaded)
        scores = _run(model_path, loaded, mode, asked)
        baseline_scores = {} if baseline is None else _run(baseline, loaded, mode, asked)
        versions = harness_versions()
    return TaskReport(
        str(model_path),
        None if baseline is None else str(baseline),
        mode,
        limit,
        seed,
        scores,
        baseline_scores,
        versions,
    )


def run_paper(
    model_path: Path,
    tasks: Sequence[str] = (),
    *,
    task_files: Mapping[str, Path] = MappingProxyType({}),
    task_folders: Sequence[Path] = (),
    limit: int | None = None,
    baseline: Path | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
) -> PaperReport:
    """The same in both of the paper's modes, for its table; arguments and refusals are those of `run_tasks`.

    Tasks that generate text are left out of mode "prefill": generation is decoding.
    """
    asked = _Asked(tasks, task_files, task_folders, limit, tokenizer, seed, threads, progress or (lambda _line: None))
    asked.check_folders(model_path, baseline)
    with harness_session():
        loaded = _load(asked)
        scored = {name: task for name, task in loaded.items() if task.OUTPUT_TYPE != _GENERATES}
        dense = {} if baseline is None else _run(baseline, loaded, "prefill+decode", asked)
        by_mode: dict[str, dict[str, TaskScores]] = {
            "prefill": _run(model_path, scored, "prefill", asked) if scored else {},
            "prefill+decode": _run(model_path, loaded, "prefill+decode", asked),
        }
        versions = harness_versions()
    prefill, both = (
        TaskReport(
            str(model_path), None if baseline is None else str(baseline), mode, limit, seed, scores, dense, versions
        )
        for mode, scores in by_mode.items()
    )
    return PaperReport(prefill, both)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What both kinds of run are asked; see `run_tasks`."""

    tasks: Sequence[str]
    task_files: Mapping[str, Path]
    task_folders: Sequence[Path]
    limit: int | None
    tokenizer: Path | None
    seed: int
    threads: int | None
    tell: Progress

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise DeltaLLMError(f"limit is {self.limit}: give a whole number of at least 1.")
        if not self.tasks and not self.task_files and not self.task_folders:
            raise DeltaLLMError("No task is named: give --tasks or --task-file.")

    def folder(self, model: Path) -> Path:
        """Where a model's tokenizer and configuration lie."""
        return self.tokenizer or model.parent

    def check_folders(self, *models: Path | None) -> None:
        """Refuse a missing tokenizer before anything takes long."""
        for model in models:
            if model is not None:
                TextTokenizer(self.folder(model))


def _refuse_generation(tasks: Mapping[str, Any]) -> None:
    name = next((name for name, task in tasks.items() if task.OUTPUT_TYPE == _GENERATES), None)
    if name is not None:
        raise DeltaLLMError(
            f"{name} has text generated token by token, which mode prefill leaves out: choose prefill+decode for it."
        )


def _load(asked: _Asked) -> dict[str, Any]:
    from deltallm_onnx.tasks.catalogue import build_task, load_task  # noqa: PLC0415  # needs lm_eval
    from deltallm_onnx.tasks.item_check import check_items  # noqa: PLC0415
    from deltallm_onnx.tasks.local_folder import read_folder  # noqa: PLC0415

    own = {task.name: task for folder in asked.task_folders for task in read_folder(folder)}
    names = list(dict.fromkeys(asked.tasks)) or [*asked.task_files, *own]
    unused = sorted(set(asked.task_files) - set(names))
    if unused:
        raise DeltaLLMError(f"There is a file for {unused[0]}, which is not among the tasks: add it to --tasks.")
    loaded = {}
    for name in names:
        asked.tell(f"Loading {name} …")
        file = asked.task_files.get(name)
        task = build_task(own[name].config, own[name].rows) if name in own else load_task(name, file)
        if name in own or file is not None:
            check_items(task, asked.limit)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=asked.seed)
        loaded[name] = task
    return loaded


def _run(path: Path, tasks: Mapping[str, Any], mode: str, asked: _Asked) -> dict[str, TaskScores]:
    from lm_eval.evaluator import evaluate  # noqa: PLC0415  # an extra

    from deltallm_onnx.tasks.adapter import HarnessModel  # noqa: PLC0415  # needs lm_eval

    asked.tell(f"Opening {path} …")
    model = open_token_model(path, asked.folder(path), mode, threads=asked.threads)
    found = {}
    for name, task in tasks.items():
        random.seed(asked.seed)
        np.random.seed(asked.seed)  # noqa: NPY002  # what the harness draws from
        done = 0

        def count(name: str = name) -> None:
            nonlocal done
            done += 1
            asked.tell(f"{path.name}, {name}: {done} texts …")

        model.reset()
        with contextlib.redirect_stdout(io.StringIO()):  # stdout is for the result
            results = evaluate(
                lm=HarnessModel(model, asked.folder(path), on_request=count),
                task_dict={"tasks": {name: task}},
                limit=asked.limit,
                bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            )
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        found[name] = TaskScores(
            metrics=task_metrics(task, results["results"][name], samples),
            items=len(samples),
            requests=sum(len(sample["arguments"]) for sample in samples),
            seconds=model.seconds,
            tokens=model.tokens,
            counters=model.counters,
        )
    return found
