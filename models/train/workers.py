"""Two cores, two workers: each micro-batch runs on one core from end to end.

Splitting every matrix product over the cores makes them wait for each other hundreds of times per step, which on a
shared machine costs half the speed. Here each worker thread (PyTorch lets go of the interpreter lock inside its
operations) has its own gradients over the same weights, and they meet once per step. Micro-batch n always belongs to
worker n mod W and the gradients are added in the workers' order, so that the result does not depend on timing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import LlamaForCausalLM


class Workers:
    """Replicas of a model that share its weights but not its gradients."""

    def __init__(self, model: LlamaForCausalLM, count: int) -> None:
        self.models = [model]
        for _ in range(count - 1):
            replica = copy.deepcopy(model)
            for theirs, ours in zip(replica.parameters(), model.parameters(), strict=True):
                theirs.data = ours.data
            self.models.append(replica)
        self.pool = ThreadPoolExecutor(count)

    def accumulate(self, micro_batches: int, loss_of: Callable[[LlamaForCausalLM, int], torch.Tensor]) -> float:
        """Back-propagate `loss_of(model, n)` for every n; leave the summed gradients in the first model.

        Returns the sum of the losses.
        """

        def work(worker: int) -> list[float]:
            losses = []
            for number in range(worker, micro_batches, len(self.models)):
                loss = loss_of(self.models[worker], number)
                loss.backward()
                losses.append(loss.item())
            return losses

        losses = list(self.pool.map(work, range(len(self.models))))
        for replica in self.models[1:]:
            for ours, theirs in zip(self.models[0].parameters(), replica.parameters(), strict=True):
                if theirs.grad is not None:
                    ours.grad = theirs.grad if ours.grad is None else ours.grad.add_(theirs.grad)
                theirs.grad = None
        return sum(sum(part) for part in losses)
