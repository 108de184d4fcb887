"""Whether a task's texts, choices and answers can be made from every item, before a model is opened."""

from __future__ import annotations

from typing import Any

from deltallm_onnx.errors import DeltaLLMError

_LONGEST_REASON = 300


def check_items(task: Any, limit: int | None = None) -> None:
    """Make what the task asks of every item.

    The harness counts an answer that is no choice as a wrong prediction, and stops at the first text it cannot make.

    Args:
        task: an `lm_eval.api.task.ConfigurableTask`.
        limit: items that will be asked, the first ones; None for all.

    Raises:
        DeltaLLMError: naming the task, the item by its number, and the fault.
    """
    docs = task.eval_docs
    for number in range(len(docs) if limit is None else min(limit, len(docs))):
        doc = docs[number]
        try:
            task.doc_to_text(doc)
            target = task.doc_to_target(doc)
            fault = _choice_fault(task.doc_to_choice(doc), target, task) if _has_choices(task) else None
        except Exception as error:  # noqa: BLE001  # whatever a template raises
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
        if fault is not None:
            raise DeltaLLMError(
                f"Item {number + 1} of the task {task.config.task} does not fit it ({fault}): correct the item, or "
                "the task's configuration."
            )


def _has_choices(task: Any) -> bool:
    return bool(task.OUTPUT_TYPE == "multiple_choice")


def _choice_fault(choices: Any, target: Any, task: Any) -> str | None:
    """What is wrong with the choices of an item or with the right ones among them; None if nothing is."""
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        return f"its choices are {choices!r:.60}, not two texts or more"
    if task.multiple_input:
        return None  # the right choice is told by doc_to_text, and the target is what follows each of them
    for right in target if isinstance(target, list) else [target]:
        known = right in choices if isinstance(right, str) else type(right) is int and 0 <= right < len(choices)
        if not known:
            return f"its answer is {right!r:.60}, none of {len(choices)} choices"
    return None
