"""A user's own tasks: a folder of YAML files in the harness's format, with their items as JSON lines beside them.

The harness runs what a YAML file names: functions (`!function`), metrics fetched over the network, templates with the
whole of Python in reach. Here a file may only say what text to ask and how to score it; the rest is refused, and
`harness.harness_session` renders the templates.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.tasks.local_files import Row, read_json_lines

_TEXT, _LIST, _MAPPING = (str,), (list,), (dict,)
#: Keys a file may have, and the types of their values.
_KEYS: dict[str, tuple[type, ...]] = {
    "task": _TEXT,
    "task_alias": _TEXT,
    "dataset_path": _TEXT,
    "dataset_name": (str, type(None)),
    "dataset_kwargs": _MAPPING,
    "output_type": _TEXT,
    "training_split": (str, type(None)),
    "validation_split": (str, type(None)),
    "test_split": (str, type(None)),
    "description": _TEXT,
    "doc_to_text": _TEXT,
    "doc_to_target": (str, int),
    "doc_to_choice": (str, list),
    "target_delimiter": _TEXT,
    "generation_kwargs": _MAPPING,
    "metric_list": _LIST,
    "num_fewshot": (int,),
    "metadata": _MAPPING,
    "tag": (str, list),
    "should_decontaminate": (bool,),
    "doc_to_decontamination_query": _TEXT,
}
_METRICS = ("acc", "acc_norm", "exact_match", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
_METRIC_KEYS = {"metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "ignore_numbers"}
_OUTPUT_TYPES = ("multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until")
_GENERATION_KEYS = {"until", "max_gen_toks", "do_sample", "temperature"}
#: A task's text and settings take a few kilobytes.
_LARGEST_YAML = 1 << 20


@dataclasses.dataclass(frozen=True)
class LocalTask:
    """A task of a folder.

    Attributes:
        config: for the harness.
        rows: its items.
    """

    config: dict[str, Any]
    rows: list[Row]

    @property
    def name(self) -> str:
        """The task's name."""
        name: str = self.config["task"]
        return name


def read_folder(folder: Path) -> list[LocalTask]:
    """The tasks of a folder, by name of their files.

    Raises:
        DeltaLLMError: for a folder without YAML files, for one that runs code or names anything but local items, and
            for two tasks of one name.
    """
    if not folder.is_dir():
        raise DeltaLLMError(f"{folder} is no folder: give one with YAML files and their items, or NAME=FILE.")
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not files:
        raise DeltaLLMError(f"{folder} has no YAML file: a task is NAME.yaml in lm-evaluation-harness's format.")
    tasks = [read_task(file) for file in files]
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DeltaLLMError(f"{folder} has two tasks {twice!r}: rename one of them.")
    return tasks


def read_task(file: Path) -> LocalTask:
    """The task of one YAML file; refusals as in `read_folder`."""
    config = _load(file)
    for key, value in config.items():
        if key not in _KEYS:
            raise DeltaLLMError(f"{file} has the key {key!r}: known keys are {', '.join(_KEYS)}.")
        if not isinstance(value, _KEYS[key]) or (isinstance(value, bool) and bool not in _KEYS[key]):
            raise DeltaLLMError(f"{file} has {key}: {value!r:.60}: give {' or '.join(_names(_KEYS[key]))}.")
    for key in ("task", "output_type", "doc_to_text", "doc_to_target"):
        if key not in config:
            raise DeltaLLMError(f"{file} has no {key}: a task needs one.")
    _check_values(config, file)
    items = _items(config, file)
    rows = read_json_lines(items)
    _refuse_uneven(rows, items)
    return LocalTask(config, rows)


def _check_values(config: dict[str, Any], file: Path) -> None:
    if config["output_type"] not in _OUTPUT_TYPES:
        raise DeltaLLMError(
            f"{file} has output_type {config['output_type']!r}: choose one of {', '.join(_OUTPUT_TYPES)}."
        )
    if config["output_type"] == "multiple_choice" and not config.get("doc_to_choice"):
        raise DeltaLLMError(f"{file} has no doc_to_choice: a task of output_type multiple_choice needs one.")
    if not config["task"].strip():
        raise DeltaLLMError(f"{file} has an empty task: give it a name.")
    _check_generation(config.get("generation_kwargs", {}), file)
    if config.get("metric_list") == []:
        raise DeltaLLMError(f"{file} has an empty metric_list: name a metric, or leave it out for the usual ones.")
    for metric in config.get("metric_list", []):
        _check_metric(metric, file)
    if config.get("num_fewshot"):
        raise DeltaLLMError(f"{file} has num_fewshot {config['num_fewshot']}: write examples into description instead.")


def _load(file: Path) -> dict[str, Any]:
    import yaml  # noqa: PLC0415  # comes with lm_eval

    try:
        with file.open("rb") as opened:
            data = opened.read(_LARGEST_YAML + 1)
        if len(data) > _LARGEST_YAML:
            raise DeltaLLMError(f"{file} has more than {_LARGEST_YAML} bytes: put the items into a file of JSON lines.")
        text = data.decode("utf-8")
        # A few nested aliases stand for more text than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise DeltaLLMError(f"{file} has an alias (*name): write out what it stands for.")
        config = yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        raise DeltaLLMError(
            f"{file} has {' '.join(str(error.problem).split())}: tags such as !function run code, so a task here is "
            "written without them."
        ) from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DeltaLLMError(
            f"{file} cannot be read as YAML ({' '.join(str(error).split())[:200]}): correct it."
        ) from error
    if not isinstance(config, dict):
        raise DeltaLLMError(f"{file} holds a {type(config).__name__}: one mapping is needed.")
    return config


def _check_generation(settings: dict[Any, Any], file: Path) -> None:
    unknown = sorted(map(str, set(settings) - _GENERATION_KEYS))
    if unknown:
        raise DeltaLLMError(
            f"{file} has {unknown[0]!r} in generation_kwargs: known are {', '.join(sorted(_GENERATION_KEYS))}."
        )
    until, most = settings.get("until", []), settings.get("max_gen_toks", 1)
    if not all(isinstance(stop, str) for stop in (until if isinstance(until, list) else [until])):
        raise DeltaLLMError(f"{file} has until: {until!r:.60} in generation_kwargs: give text, or a list of texts.")
    if type(most) is not int or most < 1:
        raise DeltaLLMError(
            f"{file} has max_gen_toks: {most!r:.60} in generation_kwargs: give a whole number of at least 1."
        )


def _refuse_uneven(rows: list[Row], file: Path) -> None:
    """Refuse items with other fields than the first: the harness fills what is missing with None, prompts included."""
    fields = set(rows[0])
    for number, row in enumerate(rows, 1):
        if odd := sorted(fields ^ set(row)):
            has = "has no" if odd[0] in fields else "has the field"
            raise DeltaLLMError(
                f"{file}, item {number} {has} {odd[0]!r}, unlike item 1: give all items the same fields."
            )


def _check_metric(metric: Any, file: Path) -> None:
    if not isinstance(metric, dict) or metric.get("metric") not in _METRICS:
        found = metric.get("metric") if isinstance(metric, dict) else metric
        raise DeltaLLMError(f"{file} has the metric {found!r:.60}: known metrics are {', '.join(_METRICS)}.")
    unknown = sorted(map(str, set(metric) - _METRIC_KEYS))
    if unknown:
        raise DeltaLLMError(
            f"{file} has {unknown[0]!r} at metric {metric['metric']}: known are {', '.join(sorted(_METRIC_KEYS))}."
        )
    if metric.get("aggregation", "mean") not in ("mean", "perplexity", "weighted_perplexity", "bits_per_byte"):
        raise DeltaLLMError(
            f"{file} has the aggregation {metric['aggregation']!r} at metric {metric['metric']}: use mean."
        )


def _items(config: dict[str, Any], file: Path) -> Path:
    """The file of the items, inside the folder of the YAML file."""
    named = config.get("dataset_kwargs", {}).get("data_files")
    if isinstance(named, dict):
        split = config.get("test_split") or config.get("validation_split") or "validation"
        named = named.get(split)
    if config.get("dataset_path", "json") != "json" or not isinstance(named, str):
        raise DeltaLLMError(
            f"{file} names no local items: write dataset_path: json and dataset_kwargs: {{data_files: NAME.jsonl}}."
        )
    path = file.parent / named
    if not path.resolve().is_relative_to(file.parent.resolve()) or not path.is_file():
        raise DeltaLLMError(f"{file} names the items {named!r}: put a file of that name into {file.parent}.")
    return path


def _names(types: tuple[type, ...]) -> list[str]:
    known = {str: "text", list: "a list", dict: "a mapping", int: "a whole number", bool: "true or false"}
    return [known.get(kind, "nothing") for kind in types]
