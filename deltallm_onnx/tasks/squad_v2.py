"""SQuAD 2.0 as the harness asks it, with the metrics computed here: the harness fetches their code over the network.

Prompt and data set are those of the harness's task "squadv2". The metrics are the official ones (Rajpurkar et al.,
2018, arXiv 1806.03822): both texts are lower-cased and stripped of punctuation, articles and spare spaces; exact match,
and F1 over the words they share, each against the best of the given answers. Where there is no answer, only a text
without words is right.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

_PROMPT = "Title: {{title}}\n\nBackground: {{context}}\n\nQuestion: {{question}}\n\nAnswer:"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_METRICS = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")


def squad_v2_config() -> dict[str, Any]:
    """The task's configuration, for the harness's `ConfigurableTask`."""
    return {
        "task": "squadv2",
        "dataset_path": "lighteval/squad_v2",
        "output_type": "generate_until",
        "validation_split": "validation",
        "doc_to_text": _PROMPT,
        "doc_to_target": "{{answers.text[0] if answers.text else 'unanswerable'}}",
        "generation_kwargs": {"until": ["\n"]},
        "process_results": score_answer,
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in _METRICS],
        "metadata": {"version": 3},
    }


def score_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Scores of one generated answer, each from 0 to 1.

    Args:
        doc: a row of the data set.
        results: the generated text.

    Returns:
        exact and f1, and both again under the name of the kind of question: HasAns_ or NoAns_.
    """
    said = results[0]
    answers = [answer for answer in doc["answers"]["text"] if _words(answer)] or [""]
    kind = "HasAns" if doc["answers"]["text"] else "NoAns"
    exact = max(float(_words(said) == _words(answer)) for answer in answers)
    f1 = max(word_f1(said, answer) for answer in answers)
    return {"exact": exact, "f1": f1, f"{kind}_exact": exact, f"{kind}_f1": f1}


def silence_scores(docs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What saying nothing would score, by metric over all of these items: the least that a model has to beat."""
    unanswerable = sum(not doc["answers"]["text"] for doc in docs) / len(docs)
    return {"exact": unanswerable, "f1": unanswerable}


def word_f1(said: str, answer: str) -> float:
    """Harmonic mean of the shares of words of either text that the other has too, each word as often as it comes."""
    ours, theirs = _words(said), _words(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (collections.Counter(ours) & collections.Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
