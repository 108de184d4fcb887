"""The adapter and whole tasks in lm-evaluation-harness, against its own Hugging Face backend (`make peers`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.harness_environment import run_jobs
from support.letter_tokenizer import save_letter_tokenizer
from support.tiny_models import save_tiny

from deltallm_onnx import profile, rewrite
from deltallm_onnx.evaluation import score
from deltallm_onnx.export import export_model
from deltallm_onnx.runtime import DecoderModel, TextTokenizer

ITEMS, OWN = Path(__file__).parent / "items", Path(__file__).parent / "own"
FILES = {path.stem: path for path in sorted(ITEMS.glob("*.jsonl"))}
SCORED = {name: path for name, path in FILES.items() if name != "squadv2"}
#: A window and sinks far below the length of the texts, so that rows are coded (with θ = 0: as they are).
EXACT = profile("exact").replace(window=3, sinks=1)
COARSE = EXACT.replace(threshold=1.1)
MODES = ("prefill", "prefill+decode", "decode")
#: Sums of up to 130 log-probabilities from float32 logits of two layers, computed in two orders.
TOLERANCE = 1e-4

LONG = "In the old harbour the boats were painted every spring, and nobody asked who had paid for the paint. "
REQUESTS: dict[str, list[list[Any]]] = {
    "loglikelihood": [
        ["The mill was built of", " oak"],
        ["The mill was built of", " a soft and very old stone"],
        ["The mill was built of ", "an elm"],  # the blank goes to what follows, where it makes another token
        ["", "A text without anything before it"],
        ["<s>A text that begins itself", " and ends."],
        [LONG * 2, " Nobody."],  # longer than the model's 130 positions
        ["x", LONG[:90]],
    ],
    "loglikelihood_rolling": [["Short."], [LONG * 4]],
    "generate_until": [
        ["Once there was", {"until": ["e"], "max_gen_toks": 17}],
        ["Once there was", {"until": ["\n\n", "th"], "max_gen_toks": 40}],
        [LONG * 2, {"until": [], "max_gen_toks": 23}],
    ],
}


class Work:
    """The models, and what every job of one process gave."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        save_tiny("llama", self.source)
        save_letter_tokenizer(self.source)
        self.dense = folder / "dense" / "dense.onnx"
        self.dense.parent.mkdir()
        export_model(self.source, self.dense)
        self.exact = self._rewritten(folder, "exact")
        self.coarse = self._rewritten(folder, "coarse")
        self.roomy = self._rewritten(folder, "coarse", positions=700)
        self.jobs = self._jobs(folder)
        self.results = dict(zip(self.jobs, run_jobs(list(self.jobs.values()), folder), strict=True))

    def result(self, name: str) -> dict[str, Any]:
        assert "refused" not in self.results[name], self.results[name]
        found: dict[str, Any] = self.results[name]["result"]
        return found

    def refusal(self, name: str) -> str:
        text: str = self.results[name]["refused"]
        return text

    def _with_item(self, folder: Path, name: str, row: str) -> dict[str, Any]:
        """A job on the task of colours with this for its second item."""
        own = folder / name
        own.mkdir()
        (own / "colours.yaml").write_bytes((OWN / "colours.yaml").read_bytes())
        first, _, *others = (OWN / "colours.jsonl").read_text().splitlines()
        (own / "colours.jsonl").write_text("\n".join([first, row, *others]))
        return {"do": "tasks", "model": self.dense, "folders": [own]}

    def _rewritten(self, folder: Path, name: str, positions: int = 130) -> Path:
        out = folder / f"{name}-{positions}"
        out.mkdir()
        for file in self.dense.parent.glob("*.json"):
            (out / file.name).write_bytes(file.read_bytes())
        sizes = json.loads((out / "config.json").read_text()) | {"max_position_embeddings": positions}
        (out / "config.json").write_text(json.dumps(sizes))
        config = {"exact": EXACT, "coarse": COARSE}[name]
        return rewrite(self.dense, out / "delta.onnx", config).path

    def _jobs(self, folder: Path) -> dict[str, dict[str, Any]]:
        generating = {"loglikelihood": REQUESTS["loglikelihood"], "generate_until": REQUESTS["generate_until"]}
        piqa = {"piqa": FILES["piqa"]}
        scoring = {kind: REQUESTS[kind] for kind in ("loglikelihood", "loglikelihood_rolling")}
        jobs: dict[str, dict[str, Any]] = {
            "transformers": {"do": "answers", "model": self.source, "requests": REQUESTS},
            "dense": {"do": "answers", "model": self.dense, "mode": "prefill+decode", "requests": REQUESTS},
            "tasks by transformers": {"do": "tasks_by_transformers", "model": self.source, "files": SCORED},
            "tasks": {"do": "tasks", "model": self.exact, "baseline": self.dense, "files": SCORED, "limit": 1000},
            "limited": {"do": "tasks", "model": self.coarse, "baseline": self.dense, "files": SCORED, "limit": 2},
            "own": {"do": "tasks", "model": self.coarse, "folders": [OWN]},
            "squadv2": {"do": "tasks", "model": self.roomy, "files": {"squadv2": FILES["squadv2"]}},
            "paper": {
                "do": "tasks", "paper": True, "model": self.coarse, "baseline": self.dense, "folders": [OWN],
                "files": piqa, "tasks": ["piqa", "counting"],
            },
            "offline": {"do": "tasks", "model": self.dense, "tasks": ["winogrande"]},
            "unknown": {"do": "tasks", "model": self.dense, "tasks": ["winogrnde"]},
            "fetched metric": {"do": "tasks", "model": self.dense, "tasks": ["polemo2_in"]},
            "group": {"do": "tasks", "model": self.dense, "tasks": ["mmlu"]},
            "generation": {"do": "tasks", "model": self.dense, "folders": [OWN], "mode": "prefill"},
            "long answers": {"do": "tasks", "model": self.dense, "files": {"squadv2": FILES["squadv2"]}},
            "unused file": {"do": "tasks", "model": self.dense, "tasks": ["arc_easy"], "files": piqa},
            "no format": {"do": "tasks", "model": self.dense, "files": {"lambada_openai": FILES["piqa"]}},
            "no limit": {"do": "tasks", "model": self.dense, "files": piqa, "limit": 0},
            "escape": {"do": "tasks", "model": self.dense, "folders": [_escaping(folder / "escape")]},
            "no choice": self._with_item(folder, "no choice", '{"thing": "a lemon", "choices": ["grey"], "right": 0}'),
            "no answer": self._with_item(folder, "no answer", '{"thing": "coal", "choices": ["a", "b"], "right": 2}'),
            "no text": self._with_item(folder, "no text", '{"thing": "coal", "choices": null, "right": 0}'),
        }  # fmt: skip
        for mode in MODES:
            requests = {**scoring, **generating} if mode == "prefill+decode" else scoring
            jobs[mode] = {"do": "answers", "model": self.exact, "mode": mode, "requests": requests}
        return jobs


def _escaping(folder: Path) -> Path:
    """A task whose template reaches for Python itself."""
    folder.mkdir()
    text = (OWN / "colours.yaml").read_text()
    template = "{{ thing.__class__.__mro__[1].__subclasses__() }}"
    (folder / "colours.yaml").write_text(text.replace("The colour of {{thing}} is", template))
    (folder / "colours.jsonl").write_bytes((OWN / "colours.jsonl").read_bytes())
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return Work(tmp_path_factory.mktemp("harness"))


@pytest.mark.parametrize("form", ["dense", *MODES])
def test_likelihoods_are_those_of_transformers(work: Work, form: str) -> None:
    expected, found = work.result("transformers"), work.result(form)
    for (value, greedy), (ours, our_greedy) in zip(expected["loglikelihood"], found["loglikelihood"], strict=True):
        assert ours == pytest.approx(value, abs=TOLERANCE)
        assert our_greedy == greedy
    assert len({round(value, 3) for value, _ in expected["loglikelihood"]}) == len(REQUESTS["loglikelihood"])
    # 400 predictions, each with its own rounding.
    assert found["loglikelihood_rolling"] == pytest.approx(expected["loglikelihood_rolling"], abs=4 * TOLERANCE)


@pytest.mark.parametrize("form", ["dense", "prefill+decode"])
def test_generated_text_is_that_of_transformers(work: Work, form: str) -> None:
    expected = work.result("transformers")["generate_until"]
    assert work.result(form)["generate_until"] == expected
    assert len(set(expected)) == len(expected)
    assert "e" not in expected[0]
    assert "th" not in expected[1]


def test_rolling_is_what_evaluation_scores(work: Work) -> None:
    """A text that fits is one window behind the BOS token."""
    model, text = DecoderModel(work.dense), REQUESTS["loglikelihood_rolling"][0][0]
    tokens = TextTokenizer(work.source).encode(text)
    # As in the harness, a BOS token stands before the text's own.
    window = np.array([1, *tokens])
    logits, _ = model.step(window[None, :-1], model.new_cache())
    expected = -float(score(logits[0], window[1:]).loss.sum())
    assert work.result("dense")["loglikelihood_rolling"][0] == pytest.approx(expected, abs=TOLERANCE)


def test_tasks_from_files_score_as_with_transformers(work: Work) -> None:
    expected, found = work.result("tasks by transformers"), work.result("tasks")["tasks"]
    assert set(found) == set(SCORED)
    for name, scores in found.items():
        assert scores["items"] == len(FILES[name].read_text().splitlines())
        for metric, values in scores["metrics"].items():
            assert values["value"] == pytest.approx(expected[name][metric], abs=1e-12), (name, metric)
            assert values["stderr"] == pytest.approx(expected[name][f"{metric}_stderr"], abs=1e-12)
            assert values == scores["baseline"]["metrics"][metric], "θ = 0 chooses as the dense model does"
            assert scores["differences"][metric]["items_changed"] == 0
        assert scores["counters"]["qk_mac_sparsity"] < 0.01
        assert scores["baseline"]["counters"] is None
    chances = {name: scores["metrics"]["acc"]["chance"] for name, scores in found.items()}
    # One of five arc_easy items has three choices.
    assert chances == pytest.approx(
        {
            "arc_easy": 0.8 / 4 + 0.2 / 3,
            "boolq": 0.5,
            "hellaswag": 0.25,
            "openbookqa": 0.25,
            "piqa": 0.5,
            "winogrande": 0.5,
        }
    )


def test_limit_takes_the_first_items_and_counters_count(work: Work) -> None:
    found = work.result("limited")
    assert "the first 2 items of each" in found["lines"][0]
    for name, scores in found["tasks"].items():
        assert scores["items"] == scores["baseline"]["items"] == 2, name
        assert scores["counters"]["delta_sparsity"] > 0.2
        assert scores["counters"]["kv_bytes_read"] > 0
        # A context is read once for all its choices, except where each choice is a context of its own.
        tokens = scores["tokens"], scores["baseline"]["tokens"]
        assert tokens[0] == tokens[1] if name == "winogrande" else tokens[0] < tokens[1]
    assert found["tasks"]["winogrande"]["requests"] == 4
    assert found["tasks"]["arc_easy"]["requests"] == 7


def test_tasks_of_a_folder(work: Work) -> None:
    found = work.result("own")["tasks"]
    assert list(found) == ["colours", "counting"]
    # Three, two and four choices.
    assert found["colours"]["metrics"]["acc"]["chance"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 4) / 3)
    assert found["counting"]["metrics"]["exact_match"]["chance"] is None
    assert found["counting"]["requests"] == 2


def test_questions_answered_by_text(work: Work) -> None:
    scores = work.result("squadv2")["tasks"]["squadv2"]
    found = {name: (metric["items"], metric["chance"]) for name, metric in scores["metrics"].items()}
    # One of the two has an answer; saying nothing is right for the other.
    whole = {"exact": (2, 0.5), "f1": (2, 0.5)}
    assert found == whole | {
        "HasAns_exact": (1, None), "HasAns_f1": (1, None), "NoAns_exact": (1, None), "NoAns_f1": (1, None)
    }  # fmt: skip
    assert scores["requests"] == 2
    prompt = "Title: The mill\n\nBackground: The mill was built of oak.\n\nQuestion: Who built it?\n\nAnswer:"
    assert scores["tokens"] > 2 * len(TextTokenizer(work.source).encode(prompt))


def test_the_papers_modes(work: Work) -> None:
    found = work.result("paper")
    assert list(found["prefill"]["tasks"]) == ["piqa"]
    assert list(found["prefill+decode"]["tasks"]) == ["piqa", "counting"]
    assert found["prefill"]["tasks"]["piqa"]["metrics"] == found["prefill+decode"]["tasks"]["piqa"]["metrics"]
    assert found["prefill"]["tasks"]["piqa"]["counters"]["kv_bytes_read"] is None, "nothing is decoded"
    assert 0.05 < found["qk_mac_sparsity"]["prefill"] < 1
    assert found["prefill"]["tasks"]["piqa"]["baseline"]["items"] == 5
    assert sum("60 %" in line for line in found["lines"]) == 1
    assert sum("tokens read in" in line for line in found["lines"]) == 3, "wall time and bytes are beside the table"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("offline", "The items of task winogrande cannot be loaded from allenai/winogrande"),
        ("offline", "--task-file winogrande=FILE."),
        ("unknown", "has no task 'winogrnde': did you mean winogrande,"),
        ("group", "mmlu stands for several tasks"),
        ("fetched metric", "whose code the harness fetches over the network: such code is not run here."),
        ("generation", "counting has text generated token by token, which mode prefill leaves out"),
        ("long answers", "asks for up to 256 new tokens, the model was made for 130 in all"),
        ("unused file", "There is a file for piqa, which is not among the tasks"),
        ("no format", "There is no file format for 'lambada_openai'"),
        ("no limit", "limit is 0: give a whole number of at least 1."),
        ("escape", "The task colours does not fit its items (SecurityError: "),
        ("no choice", "Item 2 of the task colours does not fit it (its choices are ['grey'], not two texts or more)"),
        ("no answer", "Item 2 of the task colours does not fit it (its answer is 2, none of 2 choices)"),
        ("no text", "Item 2 of the task colours does not fit it (its choices are None, not two texts or more)"),
    ],
)
def test_refusals(work: Work, job: str, words: str) -> None:
    assert words in work.refusal(job)
    assert "\n" not in work.refusal(job)
