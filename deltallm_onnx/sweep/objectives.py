"""What a study is for: the numbers of a trial that are to be small or large together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class Objective:
    """One number of a trial.

    Attributes:
        name: as trials and files have it.
        direction: in Optuna's words.
        unit: for people.
    """

    name: str
    direction: Literal["minimize", "maximize"]
    unit: str


_ALL = (
    Objective("kl", "minimize", "nats per token, divergence from the dense model"),
    Objective("kv_bytes_per_token", "minimize", "bytes per token and layer"),
    Objective("decode_time", "minimize", "time of a decode step over the dense model's"),
    Objective("delta_sparsity", "maximize", "share"),
    Objective("qk_mac_sparsity", "maximize", "share"),
    Objective("attn_mac_sparsity", "maximize", "share"),
)
OBJECTIVES = {objective.name: objective for objective in _ALL}

QUALITY, TIME = "kl", "decode_time"
#: What is weighed against quality where nothing is said.
DEFAULT = ("kv_bytes_per_token",)
#: Objectives that single held channels serve, and those that values left out serve.
_OF_ELEMENTS = ("delta_sparsity", "qk_mac_sparsity", "attn_mac_sparsity")
_OF_V_SKIP = ("decode_time", "attn_mac_sparsity")


def find_objectives(names: Sequence[str], *, time: bool = False) -> tuple[Objective, ...]:
    """Quality first, then what was asked for.

    Args:
        names: of OBJECTIVES; empty takes DEFAULT.
        time: whether decode time is one too.

    Raises:
        DeltaLLMError: for an unknown name, and where quality is all there is.
    """
    wanted = [*(names or DEFAULT), *([TIME] if time else [])]
    for name in wanted:
        if name not in OBJECTIVES:
            raise DeltaLLMError(f"There is no objective {name!r}: choose of {', '.join(OBJECTIVES)}.")
    ordered = tuple(dict.fromkeys([QUALITY, *wanted]))
    if len(ordered) == 1:
        raise DeltaLLMError(
            f"{QUALITY} is an objective of every study: give one more with --objective, such as {DEFAULT[0]}."
        )
    return tuple(OBJECTIVES[name] for name in ordered)


def rewards_elements(objectives: Sequence[Objective]) -> bool:
    """Whether some objective gets better by held channels: they free no bytes and no time."""
    return any(objective.name in _OF_ELEMENTS for objective in objectives)


def rewards_v_skip(objectives: Sequence[Objective]) -> bool:
    """Whether some objective gets better by values that are left out."""
    return any(objective.name in _OF_V_SKIP for objective in objectives)


def values(objectives: Sequence[Objective], numbers: Mapping[str, Any]) -> tuple[float, ...]:
    """The numbers of a trial in the order of the objectives."""
    return tuple(float(numbers[objective.name]) for objective in objectives)
