"""SQuAD's metrics, on answers worked out by hand."""

from __future__ import annotations

import pytest

from deltallm_onnx.tasks.squad_v2 import score_answer, silence_scores, word_f1


@pytest.mark.parametrize(
    ("said", "answer", "f1"),
    [
        ("The Otter", "an otter!", 1.0),  # articles, case, punctuation
        ("sea otter", "otter", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("red red otter", "red otter otter otter", 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),  # counted, not a set
        ("whale", "otter", 0.0),
        ("", "otter", 0.0),
        ("the", "", 1.0),  # nothing is left of either
        ("theory", "ory", 0.0),  # an article is a whole word
        ("sea-otter", "seaotter", 1.0),  # punctuation goes, words join: the official rule
    ],
)
def test_word_f1(said: str, answer: str, f1: float) -> None:
    assert word_f1(said, answer) == pytest.approx(f1, abs=1e-12)


def test_the_best_answer_counts() -> None:
    doc = {"answers": {"text": ["a river otter", "the otter", "..."]}}
    found = score_answer(doc, [" Otter."])
    assert found == {"exact": 1.0, "f1": 1.0, "HasAns_exact": 1.0, "HasAns_f1": 1.0}
    found = score_answer(doc, ["an old river otter"])
    assert found["exact"] == 0.0
    assert found["f1"] == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))


def test_without_an_answer_only_silence_is_right() -> None:
    doc = {"answers": {"text": []}}
    assert score_answer(doc, [" . "]) == {"exact": 1.0, "f1": 1.0, "NoAns_exact": 1.0, "NoAns_f1": 1.0}
    assert score_answer(doc, ["unanswerable"]) == {"exact": 0.0, "f1": 0.0, "NoAns_exact": 0.0, "NoAns_f1": 0.0}


def test_silence_scores_what_saying_nothing_scores() -> None:
    docs = [{"answers": {"text": texts}} for texts in (["otter"], [], ["a whale", "whale"], [], [])]
    silent = [score_answer(doc, [""]) for doc in docs]
    found = silence_scores(docs)
    assert found == {metric: pytest.approx(sum(scores[metric] for scores in silent) / 5) for metric in ("exact", "f1")}
    assert found["f1"] == pytest.approx(3 / 5)
