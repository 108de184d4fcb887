"""Items from files: each published format leads to the rows of the hub's data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.tasks.local_rows import TASKS_WITH_FILES, task_rows

WINOGRANDE = {
    "sentence": "The lid fit the jar, _ was round.",
    "option1": "the lid",
    "option2": "the jar",
    "answer": "2",
}
CHOICES = {"text": ["a pond", "a dune", "a vault"], "label": ["A", "B", "C"]}
ARC = {"question": "Where do frogs spawn?", "choices": CHOICES, "answerKey": "C"}
OPENBOOK = {"question_stem": "Where do frogs spawn?", "choices": CHOICES, "answerKey": "C"}
PUBLISHED_ARC = {
    "id": "7",
    "question": {
        "stem": "Where do frogs spawn?",
        "choices": [{"text": text, "label": label} for text, label in zip(*CHOICES.values(), strict=True)],
    },
    "answerKey": "C",
}
FOUNDRY_ARC = {"query": "Question: Where do frogs spawn?", "choices": CHOICES["text"], "gold": 2}
HELLASWAG = {
    "activity_label": "Baking",
    "ctx_a": "A baker weighs flour.",
    "ctx_b": "then she",
    "endings": ["sleeps.", "sifts it.", "swims.", "sings."],
    "label": "1",
}
BOOLQ = {"passage": "Otters hold hands.", "question": "do otters hold hands", "label": 1}
PIQA = {"goal": "Dry a shoe.", "sol1": "Boil it.", "sol2": "Fill it with paper.", "label": 1}
SQUAD = {
    "id": "q1",
    "title": "Otters",
    "context": "Otters hold hands.",
    "question": "What do otters hold?",
    "answers": {"text": ["hands"]},
}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("winogrande", WINOGRANDE | {"qID": "x"}, WINOGRANDE),
    (
        "winogrande",
        {"context_options": ["It was dark so Ann", "It was dark so Bo"], "continuation": "lit a lamp.", "gold": 0},
        {"sentence": "_ lit a lamp.", "option1": "It was dark so Ann", "option2": "It was dark so Bo", "answer": "1"},
    ),
    ("arc_easy", ARC | {"id": "7"}, ARC),
    ("arc_easy", PUBLISHED_ARC, ARC),
    ("arc_challenge", FOUNDRY_ARC, ARC),
    ("openbookqa", OPENBOOK, OPENBOOK),
    ("openbookqa", PUBLISHED_ARC, OPENBOOK),
    ("boolq", BOOLQ | {"idx": 3}, BOOLQ),
    ("boolq", {"passage": "Otters hold hands.", "question": "do otters hold hands?", "answer": True}, BOOLQ),
    ("hellaswag", HELLASWAG | {"ind": 5}, HELLASWAG),
    ("hellaswag", HELLASWAG | {"label": 1}, HELLASWAG),
    (
        "hellaswag",
        {"query": "Baking: A baker weighs flour. Then she", "choices": HELLASWAG["endings"], "gold": 1},
        HELLASWAG | {"ctx_a": "A baker weighs flour. Then she", "ctx_b": ""},
    ),
    ("piqa", PIQA, PIQA),
    ("squadv2", SQUAD, SQUAD),
    ("squadv2", SQUAD | {"answers": [{"text": "hands", "answer_start": 12}]}, SQUAD),
]


def lines_file(folder: Path, *rows: object) -> Path:
    path = folder / "items.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize(("task", "given", "expected"), CASES)
def test_formats(tmp_path: Path, task: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert task_rows(task, lines_file(tmp_path, given, given)) == [expected, expected]


def test_every_task_has_a_case() -> None:
    assert {task for task, _, _ in CASES} == set(TASKS_WITH_FILES)


def test_squad_as_published(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    asked = [
        {"id": "q1", "question": "What do otters hold?", "answers": [{"text": "hands"}, {"text": "hands"}]},
        {"id": "q2", "question": "Who saw them?", "answers": [], "is_impossible": True},
    ]
    paragraph = {"context": "Otters hold hands.", "qas": asked}
    path.write_text(json.dumps({"version": "v2.0", "data": [{"title": "Otters", "paragraphs": [paragraph]}]}))
    first, second = task_rows("squadv2", path)
    assert first == SQUAD | {"answers": {"text": ["hands", "hands"]}}
    assert (second["id"], second["answers"]) == ("q2", {"text": []})


@pytest.mark.parametrize("joint", ["-", "_"])
def test_piqa_labels_from_the_file_beside(tmp_path: Path, joint: str) -> None:
    bare = {key: value for key, value in PIQA.items() if key != "label"}
    path = lines_file(tmp_path, bare, bare)
    (tmp_path / f"items{joint}labels.lst").write_text("1\n0\n")
    assert [row["label"] for row in task_rows("piqa", path)] == [1, 0]
    (tmp_path / f"items{joint}labels.lst").write_text("1\n0\n1\n")
    with pytest.raises(DeltaLLMError, match=r"has 3 labels and .*items\.jsonl 2 items"):
        task_rows("piqa", path)
    (tmp_path / f"items{joint}labels.lst").write_text("1\n2\n")
    with pytest.raises(DeltaLLMError, match=r"has the label '2': each is 0 or 1"):
        task_rows("piqa", path)


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("winogrande", {"text": "x"}, "item 2 is none of winogrande .* it has the fields text: sentence, option1"),
        ("winogrande", WINOGRANDE | {"answer": "3"}, "answer is '3', not 1 or 2"),
        ("winogrande", WINOGRANDE | {"sentence": "no gap"}, "item 2 is none of winogrande"),
        ("arc_easy", FOUNDRY_ARC | {"gold": 3}, "3 is no number from 0 to 2"),
        ("arc_easy", FOUNDRY_ARC | {"gold": True}, "True is no number"),
        ("arc_easy", ARC | {"answerKey": "E"}, "item 2 is none of arc_easy"),
        ("arc_easy", ARC | {"choices": {"text": ["a", "b"], "label": ["A"]}}, "2 choices have 1 labels"),
        ("boolq", BOOLQ | {"label": 2}, "2 is no number from 0 to 1"),
        ("hellaswag", HELLASWAG | {"label": ""}, "item 2 is none of hellaswag"),
        ("piqa", PIQA | {"sol1": None}, "None is no text"),
        ("squadv2", {"id": "q"}, "is not SQuAD 2.0"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, task: str, row: dict[str, Any], words: str) -> None:
    good = next(given for name, given, _ in CASES if name == task)
    with pytest.raises(DeltaLLMError, match=words):
        task_rows(task, lines_file(tmp_path, good, row))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no item"),
        (b'{"goal": \n', "line 1 is not JSON"),
        (b"\n[1, 2]\n", "line 2 holds a list"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(DeltaLLMError, match=words):
        task_rows("piqa", path)
    with pytest.raises(DeltaLLMError, match="cannot be read as text"):
        task_rows("piqa", tmp_path / "absent.jsonl")
    with pytest.raises(DeltaLLMError, match=r"has no labels: add a field label .* or put items-labels\.lst beside it"):
        task_rows("piqa", lines_file(tmp_path, {"goal": "g", "sol1": "a", "sol2": "b"}))
