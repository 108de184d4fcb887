"""Tasks of the harness: by name, with their items from the hub or from a local file. Imports lm_eval when called."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.tasks.local_files import Row
from deltallm_onnx.tasks.local_rows import TASKS_WITH_FILES, task_rows
from deltallm_onnx.tasks.squad_v2 import squad_v2_config

#: The paper's tasks, and where the harness configures them: reading all of its 14 000 tasks takes many seconds.
_PAPER_FILES = {
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
}
PAPER_TASKS = (*_PAPER_FILES, "squadv2")

#: Kinds of request that `HarnessModel` answers.
_OUTPUT_TYPES = ("loglikelihood", "multiple_choice", "loglikelihood_rolling", "generate_until")


def load_task(name: str, file: Path | None = None) -> Any:
    """A task of the harness.

    Args:
        name: as the harness calls it.
        file: its items, see `local_rows`; from the hub if None.

    Returns:
        An `lm_eval.api.task.ConfigurableTask` with its items loaded.

    Raises:
        DeltaLLMError: for an unknown name, naming near ones, for a group of tasks, where the items cannot be loaded,
            and for a file of a task without a known format.
    """
    if file is not None and name not in TASKS_WITH_FILES:
        raise DeltaLLMError(
            f"There is no file format for {name!r}: files are read for {', '.join(TASKS_WITH_FILES)}; give a folder "
            "with a task's YAML and JSON lines for others."
        )
    rows = None if file is None else task_rows(name, file)
    return build_task(_configuration(name), rows)


def build_task(config: dict[str, Any], rows: Sequence[Row] | None = None) -> Any:
    """A task from its configuration, with these rows in the place of its data set, if given.

    Raises:
        DeltaLLMError: where the harness refuses it.
    """
    from lm_eval.api.task import ConfigurableTask  # noqa: PLC0415  # an extra

    config = {key: value for key, value in config.items() if key not in ("tag", "group")}
    name = config["task"]
    _refuse_fetched_metrics(config)
    source = config.get("dataset_path")
    if config.get("dataset_kwargs"):
        config["dataset_kwargs"] = {k: v for k, v in config["dataset_kwargs"].items() if k != "trust_remote_code"}
    if rows is not None:
        config |= {
            "dataset_path": None,
            "dataset_name": None,
            "dataset_kwargs": None,
            "custom_dataset": _data_set(rows),
            "training_split": None,
            "validation_split": "validation",
            "test_split": None,
            "fewshot_split": None,
        }
    try:
        task = ConfigurableTask(config=config)
    except Exception as error:  # whatever the hub's client or a template raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if rows is None:
            raise DeltaLLMError(
                f"The items of task {name} cannot be loaded from {source} ({reason}): go online, or give a file with "
                f"--task-file {name}=FILE."
            ) from error
        raise DeltaLLMError(f"The task {name} does not fit its items ({reason}): correct its configuration.") from error
    if task.OUTPUT_TYPE not in _OUTPUT_TYPES or getattr(task, "UNSAFE_CODE", False):
        raise DeltaLLMError(
            f"The task {name} runs generated code or wants more than text: it cannot be evaluated here."
        )
    return task


def _refuse_fetched_metrics(config: dict[str, Any]) -> None:
    """Refuse metrics that the harness does not have itself: it would load their code from the hub and run it."""
    from lm_eval.api.registry import metric_registry  # noqa: PLC0415  # an extra

    importlib.import_module("lm_eval.api.metrics")  # fills the registry
    for metric in config.get("metric_list") or ():
        metric_name = metric.get("metric")
        own = callable(metric_name) or (metric_name in metric_registry and not metric.get("hf_evaluate"))
        if not own and config.get("process_results") is None:
            raise DeltaLLMError(
                f"The task {config['task']} is scored by {metric_name!r}, whose code the harness fetches over the "
                "network: such code is not run here."
            )


def _data_set(rows: Sequence[Row]) -> Callable[..., Any]:
    """What the harness calls for a data set of its own; it passes the task's metadata."""

    def load(**_: Any) -> Any:
        import datasets  # noqa: PLC0415  # comes with lm_eval
        import pyarrow as pa  # noqa: PLC0415

        # A given fingerprint spares pickling the rows, which fails where packages lie outside site-packages.
        digest = hashlib.sha256(json.dumps(list(rows), sort_keys=True).encode()).hexdigest()[:16]
        return datasets.DatasetDict(
            {"validation": datasets.Dataset(pa.Table.from_pylist(list(rows)), fingerprint=digest)}
        )

    return load


def _configuration(name: str) -> dict[str, Any]:
    import lm_eval  # noqa: PLC0415  # an extra
    from lm_eval.tasks._yaml_loader import load_yaml  # noqa: PLC0415

    if name == "squadv2":
        return squad_v2_config()
    file = Path(lm_eval.__file__).parent / "tasks" / _PAPER_FILES.get(name, "")
    if not file.is_file():
        file = _indexed_file(name)
    config: dict[str, Any] = load_yaml(file)
    return config


def _indexed_file(name: str) -> Path:
    """The YAML file of any task, from the harness's index."""
    manager = _task_manager()
    entry = manager.task_index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, manager.all_tasks, n=4)
        hint = f"did you mean {', '.join(near)}?" if near else f"the paper's are {', '.join(PAPER_TASKS)}."
        raise DeltaLLMError(f"lm-evaluation-harness has no task {name!r}: {hint}")
    if name not in manager.all_subtasks:
        raise DeltaLLMError(f"{name} stands for several tasks of lm-evaluation-harness: name them one by one.")
    if "class" in (entry.cfg or {}):
        raise DeltaLLMError(
            f"{name} is a program inside lm-evaluation-harness: only tasks written as YAML are offered."
        )
    path: Path = entry.yaml_path
    return path


@functools.cache
def _task_manager() -> Any:
    from lm_eval.tasks import TaskManager  # noqa: PLC0415  # an extra

    return TaskManager()
