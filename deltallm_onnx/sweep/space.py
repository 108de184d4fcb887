"""What a study searches: one candidate is one setting of everything that a sweep may change."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from deltallm_onnx.calibration.budget import parse_budget
from deltallm_onnx.calibration.default import DEFAULT_BUDGET
from deltallm_onnx.calibration.rules import RULES, Rule
from deltallm_onnx.calibration.search import USUAL_INTERACTION
from deltallm_onnx.config import CacheFormat, DeltaConfig, Granularity
from deltallm_onnx.errors import DeltaLLMError

if TYPE_CHECKING:
    import optuna

#: Searched where nothing is said: newest tokens that stay exact, first ones, and ε where an objective rewards it.
WINDOWS, SINKS, V_SKIPS = (16, 32, 64, 128, 256), (1, 4), (0.0, 1e-3, 3e-3, 1e-2)
CACHE_FORMATS: tuple[CacheFormat, ...] = ("float32", "float16", "int8", "int4")
RULE_NAMES = ("query",)
#: What the curves may promise at `spend` = 1 where no --max-kl says it, in nats per token.
LARGEST_KL = 0.1
#: Predicted divergences are `spend` to this power: half of the range is then below an eighth of the largest.
_POWER = 3


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
        rule: granularity and name of the rule, such as "row query".
        spend: in [0, 1]; 0 holds nothing, 1 spends the largest predicted divergence.
        window: newest tokens that stay exact.
        sinks: first tokens that stay exact.
        v_skip: ε.
        cache_format: storage of keys and values.
    """

    rule: str
    spend: float
    window: int
    sinks: int
    v_skip: float
    cache_format: CacheFormat

    def config(self) -> DeltaConfig:
        """The global settings.

        Raises:
            DeltaLLMError: for values that do not go together.
        """
        rule = find(self.rule)
        return DeltaConfig().replace(
            window=self.window,
            sinks=self.sinks,
            granularity=rule.granularity,
            row_rule=rule.row_rule,
            v_skip=self.v_skip,
            cache_format=self.cache_format,
        )

    @property
    def label(self) -> str:
        """In words, for tables and pictures."""
        held = f"{self.rule}, spend {self.spend:.3g}" if self.spend > 0 else "nothing held"
        skipped = f", v_skip {self.v_skip:g}" if self.v_skip else ""
        return f"{held}, {self.cache_format}, window {self.window}, sinks {self.sinks}{skipped}"


@dataclasses.dataclass(frozen=True)
class Space:
    """All candidates of a study; a setting with one choice is fixed.

    Attributes:
        rules: granularities and names, such as "row query".
        windows: tokens.
        sinks: tokens.
        v_skips: ε.
        cache_formats: of keys and values.
        largest_kl: predicted by the curves at `spend` = 1, in nats per token.

    Raises:
        DeltaLLMError: for a combination that no model can be written with.
    """

    rules: tuple[str, ...]
    windows: tuple[int, ...] = WINDOWS
    sinks: tuple[int, ...] = SINKS
    v_skips: tuple[float, ...] = (0.0,)
    cache_formats: tuple[CacheFormat, ...] = CACHE_FORMATS
    largest_kl: float = LARGEST_KL

    def __post_init__(self) -> None:
        for rule, window, sinks, v_skip, cache_format in itertools.product(
            self.rules, self.windows, self.sinks, self.v_skips, self.cache_formats
        ):
            Candidate(rule, 0.0, window, sinks, v_skip, cache_format).config()

    def suggest(self, trial: optuna.Trial) -> Candidate:
        """Ask the sampler for a candidate."""

        def choose(name: str, choices: Sequence[Any]) -> Any:
            return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)

        return Candidate(
            rule=choose("rule", self.rules),
            spend=trial.suggest_float("spend", 0.0, 1.0),
            window=choose("window", self.windows),
            sinks=choose("sinks", self.sinks),
            v_skip=choose("v_skip", self.v_skips),
            cache_format=choose("cache_format", self.cache_formats),
        )

    def parameters(self, candidate: Candidate) -> dict[str, Any]:
        """What `suggest` would have to be told to return a candidate."""
        choices = {
            "rule": self.rules,
            "window": self.windows,
            "sinks": self.sinks,
            "v_skip": self.v_skips,
            "cache_format": self.cache_formats,
        }
        open_ones = {name: getattr(candidate, name) for name, found in choices.items() if len(found) > 1}
        return {**open_ones, "spend": candidate.spend}

    def predicted_kl(self, candidate: Candidate) -> float:
        """The divergence that a candidate's thresholds may cost by the curves, in nats per token."""
        return self.largest_kl * float(candidate.spend**_POWER)

    def first(self) -> list[Candidate]:
        """What every study begins with: nothing held in each cache format, and what `convert` does by itself."""
        usual = DeltaConfig()
        exact = [
            Candidate(
                rule=self.rules[0],
                spend=0.0,
                window=_nearest(self.windows, usual.window),
                sinks=_nearest(self.sinks, usual.sinks),
                v_skip=min(self.v_skips),
                cache_format=cache_format,
            )
            for cache_format in self.cache_formats
        ]
        wanted = parse_budget(DEFAULT_BUDGET).limit / USUAL_INTERACTION
        spend = min(1.0, (wanted / self.largest_kl) ** (1 / _POWER))
        preferred = usual.cache_format if usual.cache_format in self.cache_formats else self.cache_formats[0]
        return [*exact, dataclasses.replace(exact[0], spend=spend, cache_format=preferred)]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }


def find(rule: str) -> Rule:
    """The rule of a candidate."""
    granularity, name = rule.split(" ", 1)
    found: dict[tuple[str, str], Rule] = {(key[0], key[1]): value for key, value in RULES.items()}
    return found[granularity, name]


def rules_of(granularities: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Every rule of these names in these granularities.

    Raises:
        DeltaLLMError: for an unknown granularity, and for a name that none of them has.
    """
    known = get_args(Granularity)
    for granularity in granularities:
        if granularity not in known:
            raise DeltaLLMError(f"granularity is {granularity!r}: choose one of {', '.join(known)}.")
    own = [rule for rule in RULES.values() if rule.granularity in granularities]
    for name in names:
        if name not in {rule.name for rule in own}:
            there = ", ".join(dict.fromkeys(rule.name for rule in own))
            raise DeltaLLMError(
                f"There is no rule {name!r} with granularity {' or '.join(granularities)}: choose one of {there}."
            )
    return tuple(
        f"{granularity} {name}"
        for granularity in dict.fromkeys(granularities)
        for name in dict.fromkeys(names)
        if any(rule.granularity == granularity and rule.name == name for rule in own)
    )


def holds_keys(window: int, sinks: int, tokens: int) -> bool:
    """Whether a text of so many tokens has keys behind its sinks and its exact window that a later token reads."""
    return tokens > window + sinks + 1


def _nearest(choices: Sequence[int], wanted: int) -> int:
    return min(choices, key=lambda choice: (abs(choice - wanted), choice))
