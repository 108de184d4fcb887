"""Long-range retrieval: what was said once, some way back, has to be said again at the end of the context.

Two tests. *Repeated sequence*: random tokens stand in a text at some depth and come again at its end; a model with
induction heads predicts them the second time, and what is in no other place cannot be guessed. *Passkey*: the same in
words, with a number to remember (Mohtashami and Jaggi, arXiv 2305.16300). Depth 0 is the beginning of the context.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.runtime.tokenizer import TextTokenizer

Array = npt.NDArray[np.int64]

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Contexts per depth and task.
SAMPLES = 2

REPEATED, PASSKEY = "repeated sequence", "passkey"
#: Tokens of a repeated sequence, at most; and their largest share of the context.
SEQUENCE_TOKENS, SEQUENCE_SHARE = 32, 8
#: Shorter sequences and contexts show nothing.
LEAST_SEQUENCE = 4

DIGITS = 5
NEEDLE = " The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "\nWhat is the pass key? The pass key is"
ANSWER = " {key}"


@dataclasses.dataclass(frozen=True)
class Sample:
    """One context with something to retrieve at its end.

    Attributes:
        task: REPEATED or PASSKEY.
        depth: of what is to be retrieved, a share of the context from 0 to 1; None where it was never said, to show
            what is predicted then.
        tokens: token ids [S].
        first: position of the first token that shows whether it was retrieved; it and all behind it are scored.
        chance_log_prob: log-probability of the scored tokens together, in nats, for whoever guesses.
    """

    task: str
    depth: float | None
    tokens: Array
    first: int
    chance_log_prob: float


def repeated_sequences(
    windows: Array, *, begin: int, samples: int = SAMPLES, depths: Sequence[float] = DEPTHS, seed: int = 0
) -> list[Sample]:
    """Windows of text with a random sequence at a depth and again at the end.

    The sequence is drawn evenly from the tokens that occur in the windows, so that none is a special one. Its first
    token is not scored: nothing says that the repetition begins.

    Args:
        windows: text, token ids [N, S].
        begin: tokens at the beginning of every window that stay there.
        samples: per depth, ≥ 1.
        depths: see `Sample`; those that were never said come behind them.
        seed: of the sequences; each sample has its own, the same at every depth.

    Returns:
        For every depth so many samples of S tokens; none where S has no room for them.

    Raises:
        DeltaLLMError: for a depth or a number of samples out of range.
    """
    _check(depths, samples)
    S = windows.shape[1]
    length = min(SEQUENCE_TOKENS, S // SEQUENCE_SHARE)
    alphabet = np.unique(windows[:, begin:])
    if length < LEAST_SEQUENCE:
        return []
    chance = -(length - 1) * math.log(len(alphabet))
    found = []
    for depth, number in itertools.product((*depths, None), range(samples)):
        sequence = np.random.default_rng([seed, number]).choice(alphabet, length)
        tokens = _context(windows[number % len(windows)], begin, depth, sequence, sequence)
        found.append(Sample(REPEATED, depth, tokens, S - length + 1, chance))
    return found


def passkeys(
    tokenizer: TextTokenizer,
    windows: Array,
    *,
    begin: int,
    samples: int = SAMPLES,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
) -> list[Sample] | str:
    """Windows of text with a sentence that names a number at a depth, and a question for it at the end.

    Args:
        tokenizer: of the windows.
        windows: text, token ids [N, S].
        begin: tokens at the beginning of every window that stay there.
        samples: per depth, ≥ 1.
        depths: see `Sample`; those that were never said come behind them.
        seed: of the numbers; each sample has its own, the same at every depth.

    Returns:
        For every depth so many samples of S tokens, the digits scored; or the reason why there is no such test.

    Raises:
        DeltaLLMError: for a depth or a number of samples out of range.
    """
    _check(depths, samples)
    S = windows.shape[1]
    question = tokenizer.encode(QUESTION, special_tokens=False)
    found = []
    for depth, number in itertools.product((*depths, None), range(samples)):
        key = "".join(map(str, np.random.default_rng([seed, number]).integers(0, 10, DIGITS)))
        needle = tokenizer.encode(NEEDLE.format(key=key), special_tokens=False)
        asked = tokenizer.encode(QUESTION + ANSWER.format(key=key), special_tokens=False)
        answer = asked[len(question) :]
        if asked[: len(question)] != question or tokenizer.decode(answer).strip() != key:
            return "the tokenizer does not keep digits apart"
        while not tokenizer.decode(answer[:1]).strip():
            del answer[0]  # a blank of its own is no digit
        if S - begin < 2 * (len(needle) + len(asked)):
            return f"windows of {S} tokens have no room for the question and a text"
        tokens = _context(windows[number % len(windows)], begin, depth, np.array(needle), np.array(asked))
        found.append(Sample(PASSKEY, depth, tokens, S - len(answer), -DIGITS * math.log(10)))
    return found


def _context(text: Array, begin: int, depth: float | None, needle: Array, end: Array) -> Array:
    """A window [S] of the text with one thing inside, or with text instead, and another at its end."""
    room = len(text) - begin - len(needle) - len(end)
    at = begin + round((depth or 0) * room)
    if depth is None:
        return np.concatenate([text[: len(text) - len(end)], end])
    return np.concatenate([text[:at], needle, text[at : begin + room], end])


def _check(depths: Sequence[float], samples: int) -> None:
    if samples < 1:
        raise DeltaLLMError(f"retrieval-samples is {samples}: give a whole number of at least 1.")
    for depth in depths:
        if not 0 <= depth <= 1:
            raise DeltaLLMError(f"depth is {depth}: give shares of the context from 0 to 1.")
