"""Checkpoints: everything the next step needs, replaced atomically.

A checkpoint is one file, `RUN/checkpoint.pt`, holding tensors and plain values only; it is read with
`weights_only=True`, so that nothing in it is executed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from errors import UserError
from transformers import LlamaForCausalLM

NAME = "checkpoint.pt"


def save_checkpoint(
    run: Path,
    *,
    step: int,
    tokens: int,
    size: str,
    seed: int,
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Write the state after `step` steps and `tokens` tokens; a kill leaves the old or the new file whole."""
    temporary = run / (NAME + ".tmp")
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state = {"step": step, "tokens": tokens, "size": size, "seed": seed}
    with temporary.open("wb") as stream:
        torch.save(
            state | {"model": weights, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, stream
        )
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(run / NAME)


def read_checkpoint(run: Path) -> dict[str, Any]:
    """The state written by `save_checkpoint`."""
    path = run / NAME
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; train first with models/train/train.py --out {run}")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_weights(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Copy the weights of a checkpoint into `model`; a missing, extra or differently shaped tensor is refused."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != weights.keys():
        raise UserError(f"checkpoint and model differ in {sorted(parameters.keys() ^ weights.keys())}; check --size")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                raise UserError(
                    f"{name} is {tuple(weights[name].shape)} in the checkpoint; expected {tuple(parameter.shape)}"
                )
            parameter.copy_(weights[name])
