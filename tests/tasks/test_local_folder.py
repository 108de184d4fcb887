"""A user's own tasks: what a YAML file may say, and that nothing in it is run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.tasks.local_folder import read_folder

OWN = Path(__file__).parent / "own"
TASK = (OWN / "colours.yaml").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(OWN, tmp_path / "own")


def test_tasks_and_their_items(folder: Path) -> None:
    colours, counting = read_folder(folder)
    assert (colours.name, len(colours.rows), colours.rows[1]["thing"]) == ("colours", 3, "a lemon")
    assert (counting.name, counting.rows[0]["next"]) == ("counting", " four")
    assert counting.config["generation_kwargs"] == {"until": [" ", "e"], "max_gen_toks": 11}


def changed(old: str, new: str) -> str:
    assert TASK.count(old) == 1
    return TASK.replace(old, new)


MARKER = "a file that only running code would make"
CODE = f"import pathlib; pathlib.Path({MARKER!r}).touch()\ndef rows(data): return data\n"
REFUSED = [
    (changed("doc_to_target: right", "doc_to_target: !function code.rows"), "tags such as !function run code"),
    (TASK + "process_docs: !function code.rows\n", "tags such as !function run code"),
    (changed("task: colours", "task: !!python/object/apply:os.getcwd []"), "tags such as !function run code"),
    (TASK + "include: other.yaml\n", "has the key 'include': known keys are task,"),
    (TASK + "class: code.rows\n", "has the key 'class'"),
    (TASK + "custom_dataset: code.rows\n", "has the key 'custom_dataset'"),
    (TASK + "unsafe_code: true\n", "has the key 'unsafe_code'"),
    (TASK + "num_fewshot: 3\n", "has num_fewshot 3: write examples into description"),
    (changed("metric: acc", "metric: squad_v2"), "has the metric 'squad_v2': known metrics are acc,"),
    (changed("higher_is_better: true", "hf_evaluate: true"), "has 'hf_evaluate' at metric acc"),
    (changed("aggregation: mean", "aggregation: median"), "has the aggregation 'median'"),
    (changed("dataset_path: json", "dataset_path: someone/something"), "names no local items"),
    (changed("data_files: colours.jsonl", "data_files: https://example.org/x.jsonl"), "names the items 'https:"),
    (changed("data_files: colours.jsonl", "data_files: ../secret.jsonl"), "names the items '../secret.jsonl'"),
    (changed("data_files: colours.jsonl", "data_files: gone.jsonl"), "put a file of that name into"),
    (changed("data_files: colours.jsonl", "data_dir: ."), "names no local items"),
    (changed("output_type: multiple_choice", "output_type: winner"), "has output_type 'winner': choose one of"),
    (changed("task: colours", "task: [colours]"), "has task: ['colours']: give text."),
    (changed("doc_to_target: right", "doc_to_target: true"), "has doc_to_target: True: give text or a whole number."),
    (changed("doc_to_target: right\n", ""), "has no doc_to_target"),
    (changed("task: colours", "task: counting"), "has two tasks 'counting'"),
    ("- task\n", "holds a list: one mapping is needed"),
    ("task: [unclosed\n", "cannot be read as YAML"),
    (TASK + "generation_kwargs: {num_beams: 4}\n", "has 'num_beams' in generation_kwargs"),
    (TASK + "generation_kwargs: {1: 2, num_beams: 4}\n", "has '1' in generation_kwargs"),
    (TASK + "generation_kwargs: {until: 5}\n", "has until: 5 in generation_kwargs: give text"),
    (TASK + "generation_kwargs: {until: [a, 5]}\n", "has until: ['a', 5] in generation_kwargs: give text"),
    (TASK + "generation_kwargs: {max_gen_toks: many}\n", "has max_gen_toks: 'many' in generation_kwargs"),
    (TASK + "generation_kwargs: {max_gen_toks: 0}\n", "has max_gen_toks: 0 in generation_kwargs"),
    (changed("metric: acc", "metric: acc\n    1: 2\n    zz: 3"), "has '1' at metric acc"),
    (TASK.partition("metric_list:")[0] + "metric_list: []\n", "has an empty metric_list"),
    (changed('doc_to_choice: "{{choices}}"\n', ""), "has no doc_to_choice"),
    (changed("task: colours", "task: ' '"), "has an empty task"),
    (changed("version: 1.0", "a: &a [x]\n  b: [*a, *a]"), "has an alias"),
    (TASK + "#" * (1 << 20), "has more than 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "code.py").write_text(CODE)
    (folder.parent / "secret.jsonl").write_text('{"a": 1}\n')
    (folder / "colours.yaml").write_text(text)
    with pytest.raises(DeltaLLMError) as refusal:
        read_folder(folder)
    assert words in str(refusal.value)
    assert not (folder / MARKER).exists()


def test_items_with_other_fields_than_the_first(folder: Path) -> None:
    items = folder / "colours.jsonl"
    first, *others = items.read_text().splitlines()
    for row, words in (("{}", "item 2 has no 'choices'"), (first[:-1] + ', "x": 1}', "item 2 has the field 'x'")):
        items.write_text("\n".join([first, row, *others]))
        with pytest.raises(DeltaLLMError, match=words):
            read_folder(folder)


def test_a_link_out_of_the_folder_is_no_item(folder: Path) -> None:
    (folder.parent / "secret.jsonl").write_text('{"a": 1}\n')
    (folder / "colours.jsonl").unlink()
    (folder / "colours.jsonl").symlink_to(folder.parent / "secret.jsonl")
    with pytest.raises(DeltaLLMError, match=r"names the items 'colours\.jsonl'"):
        read_folder(folder)


def test_folders_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(DeltaLLMError, match=r"has no YAML file: a task is NAME\.yaml"):
        read_folder(tmp_path)
    with pytest.raises(DeltaLLMError, match=r"is no folder: give one with YAML files and their items, or NAME=FILE"):
        read_folder(tmp_path / "absent")
