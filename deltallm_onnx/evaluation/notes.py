"""What a reader of an evaluation should know, and what it does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from deltallm_onnx.evaluation.reading import Reader
from deltallm_onnx.evaluation.retrieval_score import RetrievalScore, tasks_at_chance
from deltallm_onnx.evaluation.trial import Trial, WindowResult


def notes_on(
    trial: Trial, results: Sequence[WindowResult], retrieved: Sequence[RetrievalScore], tokens: int
) -> tuple[str, ...]:
    """One sentence each.

    Args:
        trial: what read the windows.
        results: of every window.
        retrieved: by task and depth.
        tokens: S of a window.
    """
    return (
        *_on_comparison(trial, results),
        *_on_counts(trial, results, tokens),
        *_on_mode(trial),
        *_on_retrieval(trial, retrieved),
    )


def _on_comparison(trial: Trial, results: Sequence[WindowResult]) -> Iterator[str]:
    baseline = trial.baseline
    if baseline is None:
        yield "No baseline was given: divergence and agreement were not measured."
    elif baseline.path.samefile(trial.model.path):
        yield f"{baseline.path} is the model itself: nothing was compared."
    elif baseline.rewritten:
        yield f"The baseline {baseline.path} is a rewritten model itself, read in the same mode."
    if baseline is not None:
        yield from _on_weights(trial.model, baseline)
    if len(results) == 1:
        yield "One window says nothing about the spread: there are no intervals."
    divergences = [result.predictions.kl for result in results]
    if any(kl is not None and math.isinf(kl.max()) for kl in divergences):
        yield "The model rules out tokens that the baseline allows: the divergence is infinite."


def _on_weights(model: Reader, baseline: Reader) -> Iterator[str]:
    """A difference is of all that differs, and only of that."""
    if baseline.quantised and model.quantised:
        yield (
            f"The baseline has quantised weights itself ({baseline.quantised}): what quantising them cost is not in "
            "the differences."
        )
    elif model.quantised or baseline.quantised:
        one, other = ("model", "baseline") if model.quantised else ("baseline", "model")
        yield (
            f"The {one} has quantised weights ({model.quantised or baseline.quantised}), the {other} has none: the "
            "differences are those of weights and attention together."
        )


def _on_counts(trial: Trial, results: Sequence[WindowResult], tokens: int) -> Iterator[str]:
    model = trial.model
    counters = [result.use.counters for result in results if result.use.counters is not None]
    if not model.rewritten:
        yield f"{model.path} is dense: there is nothing to count, whatever the mode."
    elif not counters:
        yield "Nothing was counted: an unfused model counts for its own prefill setting only."
    elif not any(counter.delta_total for counter in counters):
        yield f"No key was coded: windows of {tokens} tokens lie within sinks and exact window."
    if counters and counters[0].layers < model.signature.layers:
        yield f"Counters are those of {counters[0].layers} of {model.signature.layers} layers; the others are dense."


def _on_mode(trial: Trial) -> Iterator[str]:
    mode, prefills = trial.model.mode, {prefill for prefill, _ in trial.model.prompt_settings}
    if prefills == {"exact"} and mode != "decode":
        yield "The file itself reads prompts exactly (prefill exact), as mode decode does."
    if prefills == {"delta"} and mode == "decode":
        yield "The file itself reads held keys in prompts too (prefill delta), as mode prefill+decode does."


def _on_retrieval(trial: Trial, retrieved: Sequence[RetrievalScore]) -> Iterator[str]:
    who = "model" if trial.baseline is None else "baseline"
    for task in tasks_at_chance(retrieved):
        yield f"Task {task}: the {who} has no more tokens right than chance, at any depth."
