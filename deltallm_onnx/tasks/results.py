"""What the harness returns for a task, as our metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from deltallm_onnx.tasks.report import Metric
from deltallm_onnx.tasks.squad_v2 import silence_scores


def task_metrics(task: Any, results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """Every metric of a task.

    Args:
        task: the harness's task.
        results: its entry in the harness's "results".
        samples: its entry in "samples", one per item, in the order of items.
    """
    chance = _chance(task, samples)
    found = {}
    for key, value in results.items():
        name, comma, _filter = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = results.get(key.replace(",", "_stderr,", 1))
        items = [sample[name] for sample in samples if name in sample]
        numbers = tuple(float(item) for item in items if isinstance(item, int | float))
        found[name] = Metric(
            value=float(value),
            stderr=float(stderr) if isinstance(stderr, int | float) else None,
            items=len(items),
            chance=chance.get(name),
            per_item=numbers if len(numbers) == len(items) else (),
        )
    return found


def _chance(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Scores without a model, by metric."""
    if task.config.task == "squadv2":
        return silence_scores([sample["doc"] for sample in samples])
    if task.OUTPUT_TYPE != "multiple_choice":
        return {}
    share = math.fsum(1 / len(sample["arguments"]) for sample in samples) / len(samples)
    return {"acc": share, "acc_norm": share}
