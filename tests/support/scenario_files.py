"""Scenarios of support.hf_reference in a file, from the environment that computed them to the one that compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from support.hf_reference import Scenario, Step

_FIELDS = tuple(field.name for field in dataclasses.fields(Step))


def save(path: Path, scenarios: Iterable[Scenario]) -> None:
    """Write every array of every step as `<scenario>/<step>/<field>` of an .npz file."""
    np.savez(
        path,
        **{
            f"{scenario.name}/{number}/{field}": getattr(step, field)
            for scenario in scenarios
            for number, step in enumerate(scenario.steps)
            for field in _FIELDS
        },
    )


def load(path: Path) -> list[Scenario]:
    """The scenarios of a file that `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        steps: dict[str, dict[int, dict[str, np.ndarray]]] = {}
        for key in arrays.files:
            name, number, field = key.split("/")
            steps.setdefault(name, {}).setdefault(int(number), {})[field] = arrays[key]
    return [
        Scenario(name, tuple(Step(**numbered[number]) for number in sorted(numbered)))
        for name, numbered in steps.items()
    ]
