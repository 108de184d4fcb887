"""Windows of consecutive book text, chosen by the step number alone.

Drawing is without replacement: the token stream is cut into non-overlapping windows (at a random phase per epoch) which
are visited in a random order. All randomness comes from generators seeded with (seed, what for, which one), so that the
batch of a step is the same whether the run was interrupted before it or not.

Two things are done to the windows, both counted in the model card:
- three in four start with `<s>` in place of their first token, so that the model knows text that starts anywhere;
- a share `recall` of them contains a span twice, the second time at once or anywhere later. In most of these the span
  is the book's own text; in a share `random` of them it is uniformly random tokens (whose first occurrence is not
  counted in the loss), and random tokens that come back at once go on repeating to the end of the window. This is to
  teach a small model to look back far within a small token budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from errors import UserError

IGNORED = -100
BOS_ID = 0
FIRST_TEXT_ID = 2
ORDER, EDIT = 1, 2  # purposes of a random generator

Ids = npt.NDArray[np.int64]


def load_tokens(path: Path) -> npt.NDArray[np.uint16]:
    """The token array of one split, as written by tokenizer.py."""
    if not path.is_file():
        raise UserError(f"no token array at {path}; run models/train/tokenizer.py first")
    tokens: npt.NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    if tokens.ndim != 1 or tokens.dtype != np.uint16:
        raise UserError(f"{path} holds {tokens.dtype} with {tokens.ndim} dimensions; expected one-dimensional uint16")
    return tokens


@dataclass(frozen=True)
class WindowSource:
    """Training windows over one token stream."""

    tokens: npt.NDArray[np.uint16]
    vocab_size: int
    seed: int
    recall: float
    random: float = 0.5

    def starts(self, first: int, count: int, context: int) -> list[int]:
        """Stream positions of the windows number `first` … `first + count − 1` of the given length."""
        per_epoch = (len(self.tokens) - 1) // context - 1
        if per_epoch < 1:
            raise UserError(f"{len(self.tokens)} tokens are too few for windows of {context}; give more text")
        found: list[int] = []
        orders: dict[int, tuple[int, npt.NDArray[np.int64]]] = {}
        for number in range(first, first + count):
            epoch, index = divmod(number, per_epoch)
            if epoch not in orders:
                rng = np.random.default_rng([self.seed, ORDER, context, epoch])
                orders[epoch] = (int(rng.integers(context)), rng.permutation(per_epoch))
            phase, order = orders[epoch]
            found.append(phase + int(order[index]) * context)
        return found

    def batch(self, step: int, first: int, count: int, context: int) -> tuple[Ids, Ids]:
        """Inputs and next-token targets, both [count, context]; a target of −100 is not counted."""
        rng = np.random.default_rng([self.seed, EDIT, step])
        inputs = np.empty((count, context), np.int64)
        targets = np.empty((count, context), np.int64)
        for row, start in enumerate(self.starts(first, count, context)):
            window = self.tokens[start : start + context + 1].astype(np.int64)
            counted = np.ones(context + 1, bool)
            if rng.random() < self.recall:
                self.repeat_span(window, counted, rng)
            if rng.random() < 0.75:
                window[0] = BOS_ID
            inputs[row] = window[:-1]
            targets[row] = np.where(counted[1:], window[1:], IGNORED)
        return inputs, targets

    def repeat_span(self, window: Ids, counted: npt.NDArray[np.bool_], rng: np.random.Generator) -> None:
        """Write a span of `window` again, at once or anywhere later (in place)."""
        size = len(window)
        length = int(8 * max(1.0, min(128, size // 3) / 8) ** rng.random())
        source = int(rng.integers(1, size - 2 * length + 1))
        adjacent = rng.random() < 0.75
        target = source + length if adjacent else int(rng.integers(source + length, size - length + 1))
        if rng.random() < self.random:
            window[source : source + length] = rng.integers(FIRST_TEXT_ID, self.vocab_size, length)
            counted[source : source + length] = False
            counted[target] = False
            if adjacent:
                window[target:] = np.resize(window[source:target], size - target)
        window[target : target + length] = window[source : source + length]
