"""Cross entropy of a tied output projection, computed chunk by chunk.

The logits of one chunk are turned into their gradient in place and used at once; the full [tokens, vocabulary] array
and its gradient never exist. On a CPU this saves the time that touching them would take.
"""

from __future__ import annotations

from typing import Any

import torch
from batches import IGNORED

CHUNK = 512  # rows of logits held at a time


class TiedCrossEntropy(torch.autograd.Function):  # type: ignore[misc]  # torch leaves the class untyped
    """Sum over counted targets of −log softmax(h Wᵀ)[target], divided by `denominator`."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, denominator: int
    ) -> torch.Tensor:
        """Compute the loss and, at once, both gradients."""
        weight = weight_VD.detach().to(hidden_ND.dtype)
        hidden_gradient = torch.empty_like(hidden_ND)
        weight_gradient = torch.zeros_like(weight_VD)
        total = torch.zeros((), dtype=torch.float32)
        for start in range(0, len(target_N), CHUNK):
            hidden = hidden_ND[start : start + CHUNK]
            target = target_N[start : start + CHUNK]
            counted = (target != IGNORED).unsqueeze(1)
            index = target.clamp_min(0).unsqueeze(1)
            logits = (hidden @ weight.T).float()
            normaliser = torch.logsumexp(logits, -1, keepdim=True)
            total += ((normaliser - logits.gather(1, index)) * counted).sum()
            gradient = logits.sub_(normaliser).exp_()
            gradient.scatter_add_(1, index, torch.full(index.shape, -1.0))
            gradient.mul_(counted / denominator)
            low = gradient.to(hidden.dtype)
            hidden_gradient[start : start + CHUNK] = low @ weight
            weight_gradient += low.T @ hidden
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total / denominator

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        """Scale the gradients found in the forward pass."""
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = grad_outputs[0]
        return hidden_gradient * scale.to(hidden_gradient.dtype), weight_gradient * scale, None, None


def tied_cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, target_N: torch.Tensor, denominator: int
) -> torch.Tensor:
    """Scalar float32 loss; see `TiedCrossEntropy`. N tokens, D hidden size, V vocabulary."""
    loss: torch.Tensor = TiedCrossEntropy.apply(hidden_ND, weight_VD, target_N, denominator)
    return loss
