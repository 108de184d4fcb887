"""Items of the paper's tasks from local files, in the fields that the harness's own task reads from the hub.

Each task takes the rows of its hub data set as JSON lines, the file its authors published, and the files of
llm-foundry (`query`, `choices`, `gold`, or `context_options`, `continuation`, `gold`), from which the same requests
follow. SQuAD takes its one JSON object.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.tasks.local_files import Row, read_json_lines, read_json_object, read_lines

#: Labels of choices in the order of choices, where a file numbers them.
_LABELS = "ABCDEFGHIJ"


def task_rows(task: str, path: Path) -> list[Row]:
    """The items of a task.

    Args:
        task: one of `TASKS_WITH_FILES`.
        path: a file in one of the task's formats.

    Returns:
        Rows with the fields and types of the task's hub data set.

    Raises:
        DeltaLLMError: for a file that cannot be read, and for a row in none of the task's formats, by its number.
    """
    if task == "squadv2":
        return _squad(path)
    rows = _with_labels(path) if task == "piqa" else read_json_lines(path)
    return [_converted(task, row, f"{path}, item {number}") for number, row in enumerate(rows, 1)]


def _converted(task: str, row: Row, where: str) -> Row:
    convert, fields = _CONVERTERS[task]
    try:
        return convert(row)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DeltaLLMError(
            f"{where} is none of {task} ({type(error).__name__}: {error}), it has the fields {', '.join(sorted(row))}: "
            f"{fields} are needed."
        ) from error


def _winogrande(row: Row) -> Row:
    if "context_options" in row:
        first, second = (_text(option) for option in row["context_options"])
        # The harness puts each option in the place of _ and scores what follows it.
        return {
            "sentence": f"_ {_text(row['continuation'])}",
            "option1": first,
            "option2": second,
            "answer": str(_below(row["gold"], 2) + 1),
        }
    found = {name: _text(row[name]) for name in ("sentence", "option1", "option2", "answer")}
    if found["answer"] not in ("1", "2"):
        raise ValueError(f"answer is {found['answer']!r}, not 1 or 2")
    found["sentence"].index("_")
    return found


def _question_with_choices(row: Row, *, question: str) -> Row:
    if "gold" in row:
        asked = _text(row["query"]).removeprefix("Question: ").removesuffix("\nAnswer:")
        texts = [_text(choice) for choice in row["choices"]]
        labels = list(_LABELS[: len(texts)])
        return _choices(question, asked, texts, labels, labels[_below(row["gold"], len(texts))])
    key = _text(row["answerKey"]).strip()
    if "question" in row and isinstance(row["question"], dict):
        asked, listed = _text(row["question"]["stem"]), row["question"]["choices"]
        return _choices(question, asked, [_text(c["text"]) for c in listed], [_text(c["label"]) for c in listed], key)
    texts, labels = ([_text(value) for value in row["choices"][name]] for name in ("text", "label"))
    return _choices(question, _text(row[question]), texts, labels, key)


def _choices(question: str, asked: str, texts: list[str], labels: list[str], key: str) -> Row:
    if len(texts) < 2 or len(texts) != len(labels):
        raise ValueError(f"{len(texts)} choices have {len(labels)} labels")
    labels.index(key)
    return {question: asked, "choices": {"text": texts, "label": labels}, "answerKey": key}


def _boolq(row: Row) -> Row:
    label = row["label"] if "label" in row else row["answer"]
    return {
        "passage": _text(row["passage"]),
        # The prompt adds the question mark.
        "question": _text(row["question"]).rstrip("?"),
        "label": int(label) if isinstance(label, bool) else _below(label, 2),
    }


def _hellaswag(row: Row) -> Row:
    if "gold" in row:
        activity, separator, context = _text(row["query"]).partition(": ")
        if not separator:
            raise ValueError("query has no 'activity: ' before the text")
        endings, label, rest = row["choices"], row["gold"], ""
    else:
        activity, context, rest = (_text(row[name]) for name in ("activity_label", "ctx_a", "ctx_b"))
        endings, label = row["endings"], int(row["label"])
    texts = [_text(ending) for ending in endings]
    return {
        "activity_label": activity,
        "ctx_a": context,
        "ctx_b": rest,
        "endings": texts,
        "label": str(_below(label, len(texts))),
    }


def _piqa(row: Row) -> Row:
    return {**{name: _text(row[name]) for name in ("goal", "sol1", "sol2")}, "label": _below(row["label"], 2)}


def _with_labels(path: Path) -> list[Row]:
    """PIQA's rows; its authors put the labels into a file of their own."""
    rows = read_json_lines(path)
    if "label" in rows[0]:
        return rows
    beside = [path.with_name(f"{path.stem}{joint}labels.lst") for joint in "-_"]
    file = next((candidate for candidate in beside if candidate.is_file()), None)
    if file is None:
        raise DeltaLLMError(
            f"{path} has no labels: add a field label (0 or 1) to its rows, or put {beside[0].name} beside it."
        )
    labels = read_lines(file)
    if len(labels) != len(rows):
        raise DeltaLLMError(f"{file} has {len(labels)} labels and {path} {len(rows)} items: give one label per item.")
    if not set(labels) <= {"0", "1"}:
        raise DeltaLLMError(f"{file} has the label {min(set(labels) - {'0', '1'})!r}: each is 0 or 1.")
    return [{**row, "label": int(label)} for row, label in zip(rows, labels, strict=True)]


def _squad(path: Path) -> list[Row]:
    if path.suffix != ".json":
        articles: Any = None
        flat = read_json_lines(path)
    else:
        articles, flat = read_json_object(path).get("data"), []
    try:
        if articles is not None or not flat:
            flat = [
                {"title": article["title"], "context": paragraph["context"], **question}
                for article in articles
                for paragraph in article["paragraphs"]
                for question in paragraph["qas"]
            ]
        rows = [_squad_row(row) for row in flat]
    except (KeyError, TypeError, AttributeError) as error:
        raise DeltaLLMError(
            f"{path} is not SQuAD 2.0 ({type(error).__name__}: {error}): give the published JSON file, or JSON lines "
            "with id, title, context, question and answers."
        ) from error
    if not rows:
        raise DeltaLLMError(f"{path} holds no question: give at least one.")
    return rows


def _squad_row(row: Row) -> Row:
    answers = row["answers"]
    texts = answers["text"] if isinstance(answers, dict) else [answer["text"] for answer in answers]
    found: Row = {name: _text(row[name]) for name in ("id", "title", "context", "question")}
    return {**found, "answers": {"text": [_text(text) for text in texts]}}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value


def _below(value: Any, count: int) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise ValueError(f"{value!r:.60} is no number from 0 to {count - 1}")
    return value


_CONVERTERS: dict[str, tuple[Callable[[Row], Row], str]] = {
    "winogrande": (_winogrande, "sentence, option1, option2, answer"),
    "arc_easy": (functools.partial(_question_with_choices, question="question"), "question, choices, answerKey"),
    "arc_challenge": (functools.partial(_question_with_choices, question="question"), "question, choices, answerKey"),
    "openbookqa": (
        functools.partial(_question_with_choices, question="question_stem"),
        "question_stem, choices, answerKey",
    ),
    "boolq": (_boolq, "passage, question, label"),
    "hellaswag": (_hellaswag, "activity_label, ctx_a, ctx_b, endings, label"),
    "piqa": (_piqa, "goal, sol1, sol2, label"),
}

#: Tasks whose items may come from a file.
TASKS_WITH_FILES = cast(tuple[str, ...], (*_CONVERTERS, "squadv2"))
