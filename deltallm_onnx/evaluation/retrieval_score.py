"""What a trial retrieves: log-probability and hits by task and depth."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.evaluation.confidence import bootstrap_interval
from deltallm_onnx.evaluation.retrieval import Sample
from deltallm_onnx.evaluation.trial import Trial


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """Means over the scored tokens of some samples.

    Attributes:
        log_prob: per sample, summed over its tokens, in nats.
        log_prob_interval: 95 % over samples; None for a single one.
        token_accuracy: share of tokens that were the most probable ones.
        hit_rate: share of samples all of whose tokens were: greedy decoding would have given them.
    """

    log_prob: float
    log_prob_interval: tuple[float, float] | None
    token_accuracy: float
    hit_rate: float

    @classmethod
    def of(cls, losses: Sequence[npt.NDArray[Any]], hits: Sequence[npt.NDArray[Any]], seed: int) -> Retrieved:
        """Of per-token losses in nats and hits, sample by sample."""
        sums = np.array([-loss.sum() for loss in losses])
        ends = bootstrap_interval(sums, seed=seed) if np.isfinite(sums).all() else None
        return cls(
            log_prob=float(sums.mean()),
            log_prob_interval=None if ends is None else (float(ends[0]), min(float(ends[1]), 0.0)),
            token_accuracy=float(np.concatenate(hits).mean()),
            hit_rate=float(np.mean([hit.all() for hit in hits])),
        )


@dataclasses.dataclass(frozen=True)
class RetrievalScore:
    """One task at one depth.

    Attributes:
        task: REPEATED or PASSKEY.
        depth: share of the context; None where it was never said.
        samples: contexts read.
        tokens: scored per sample, at the mean.
        chance_log_prob: per sample, of whoever guesses, in nats.
        chance_token_accuracy: the same of token_accuracy, if every token is as hard to guess as every other.
        chance_hit_rate: the same of hit_rate.
        model: what the model retrieved.
        baseline: what the baseline did; None without one.
    """

    task: str
    depth: float | None
    samples: int
    tokens: float
    chance_log_prob: float
    chance_token_accuracy: float
    chance_hit_rate: float
    model: Retrieved
    baseline: Retrieved | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return dataclasses.asdict(self)


def retrieve(
    trial: Trial, samples: Sequence[Sample], *, seed: int = 0, advance: Callable[[], None] = lambda: None
) -> list[RetrievalScore]:
    """Read every sample and score it, by task and depth in the order of the samples.

    Args:
        trial: what reads them. In mode "decode" all that is not scored is prompt.
        samples: those of one task and depth in a row.
        seed: of the bootstrap.
        advance: called after each sample.
    """
    found = []
    for (task, depth), group in itertools.groupby(samples, key=lambda sample: (sample.task, sample.depth)):
        members, results = list(group), []
        for sample in members:
            results.append(trial.read(sample.tokens, prompt=sample.first - 1, first=sample.first).predictions)
            advance()
        chance = float(np.mean([sample.chance_log_prob for sample in members]))
        tokens = float(np.mean([len(result.loss) for result in results]))
        baseline = None
        if trial.baseline is not None:
            losses = [result.baseline_loss for result in results if result.baseline_loss is not None]
            hits = [result.baseline_hit for result in results if result.baseline_hit is not None]
            baseline = Retrieved.of(losses, hits, seed)
        found.append(
            RetrievalScore(
                task=task,
                depth=depth,
                samples=len(members),
                tokens=tokens,
                chance_log_prob=chance,
                chance_token_accuracy=math.exp(chance / tokens),
                chance_hit_rate=math.exp(chance),
                model=Retrieved.of([r.loss for r in results], [r.hit for r in results], seed),
                baseline=baseline,
            )
        )
    return found


def tasks_at_chance(scores: Sequence[RetrievalScore]) -> list[str]:
    """The tasks in which the baseline, or without one the model, has hardly more tokens right than who guesses.

    That is, at no depth more than what is right where nothing was said, nor than three standard errors above chance.
    """

    def best(task: str, *, said: bool) -> float:
        found = [score for score in scores if score.task == task and (score.depth is not None) == said]
        return max(((score.baseline or score.model).token_accuracy for score in found), default=0.0)

    limits: dict[str, float] = {}
    for score in scores:
        chance = score.chance_token_accuracy
        error = math.sqrt(chance * (1 - chance) / (score.samples * score.tokens))
        limits[score.task] = max(best(score.task, said=False), chance + 3 * error)
    return [task for task, limit in limits.items() if best(task, said=True) <= limit]
