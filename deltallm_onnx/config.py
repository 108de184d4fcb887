"""DeltaConfig: every knob of delta attention in one frozen dataclass, JSON both ways, and the named profiles."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, cast, get_args

from deltallm_onnx.errors import DeltaLLMError

Granularity = Literal["element", "row"]
RowRule = Literal["relative", "absolute"]
Prefill = Literal["exact", "delta"]
PrefillCompute = Literal["float32", "bfloat16", "int8"]
FloatFormat = Literal["float32", "float16"]
#: Cache tensors uint8 [batch, KV heads, capacity, bytes_per_token] (docs/cache-format.md).
PackedFormat = Literal["int8", "int4"]
CacheFormat = Literal[FloatFormat, PackedFormat]

#: Storage of keys and values where nothing is said.
DEFAULT_CACHE_FORMAT: CacheFormat = "int8"

#: sinks + window of a packed cache is at least this: its header lies in the first slots.
PACKED_MINIMUM_EXACT = 8

#: Share of the context that profile "paper" keeps exact (docs/spec.md section 3).
PAPER_WINDOW_FRACTION = 0.05


@dataclasses.dataclass(frozen=True)
class DeltaConfig:
    """What delta attention does, as in docs/spec.md sections 2, 3, 5 and 7.

    Attributes:
        threshold: θ ≥ 0. Element granularity: in units of the key channel. Row granularity: relative to the row's
            norm (row_rule "relative") or in units of the key ("absolute"). 0 is exact.
        window: newest tokens that stay exact, in tokens, ≥ 0.
        sinks: first tokens that stay exact, in tokens, ≥ 0.
        granularity: "element" holds single channels, "row" holds whole keys.
        row_rule: what a row's change is held against; only read with granularity "row".
        refresh: restart the reference every so many tokens; 0 = never.
        v_skip: ε in [0, 1): values with probability below ε·max may be left out.
        prefill: "exact" = only decode reads held keys, "delta" = prefill too (the paper).
        cache_format: storage of keys and values. "int8" and "int4" need sinks + window ≥ 8.
        prefill_compute: arithmetic of calls with several queries: "float32", "bfloat16" products summed in float32, or
            "int8" for q·k beside bfloat16 for the values.

    Raises:
        DeltaLLMError: for a value outside its range, naming the field, the value and the range.
    """

    threshold: float = 0.6
    window: int = 128
    sinks: int = 4
    granularity: Granularity = "row"
    row_rule: RowRule = "relative"
    refresh: int = 0
    v_skip: float = 0.0
    prefill: Prefill = "exact"
    cache_format: CacheFormat = DEFAULT_CACHE_FORMAT
    prefill_compute: PrefillCompute = "float32"

    def __post_init__(self) -> None:
        for name in ("threshold", "v_skip"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DeltaLLMError(f"{name} is {value!r}: give a number.")
            object.__setattr__(self, name, float(value))
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise DeltaLLMError(f"threshold is {self.threshold}: give a finite number of at least 0.")
        if not 0 <= self.v_skip < 1:
            raise DeltaLLMError(f"v_skip is {self.v_skip}: give a number from 0 up to, but below, 1.")
        for name in ("window", "sinks", "refresh"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
                raise DeltaLLMError(f"{name} is {value!r}: give a whole number of tokens, 0 or more.")
        for name, kind in _CHOICES.items():
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise DeltaLLMError(f"{name} is {value!r}: choose one of {', '.join(allowed)}.")
        exact = self.sinks + self.window
        if self.cache_format in get_args(PackedFormat) and exact < PACKED_MINIMUM_EXACT:
            raise DeltaLLMError(
                f"sinks + window is {exact}: cache_format {self.cache_format} keeps at least {PACKED_MINIMUM_EXACT} "
                "tokens exact; raise one of them."
            )

    def replace(self, **changes: Any) -> DeltaConfig:
        """A copy with some fields changed; None means unchanged."""
        return dataclasses.replace(self, **{k: v for k, v in changes.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """All fields, in declaration order, as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """One JSON object with every field."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, data: Any, where: str = "the configuration") -> DeltaConfig:
        """Build from a mapping; missing keys take their defaults.

        Raises:
            DeltaLLMError: for anything but a mapping, for unknown keys, and for values out of range.
        """
        if not isinstance(data, dict):
            raise DeltaLLMError(f"{where} holds a {type(data).__name__}: give one JSON object.")
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(str(k) for k in data if k not in known)
        if unknown:
            raise DeltaLLMError(f"{where} has the unknown key {unknown[0]!r}: known keys are {', '.join(known)}.")
        return cls(**cast(dict[str, Any], data))

    @classmethod
    def from_json(cls, text: str, where: str = "the configuration") -> DeltaConfig:
        """Parse what `to_json` wrote. Raises DeltaLLMError on malformed JSON too."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise DeltaLLMError(f"{where} is not JSON ({error}).") from error
        return cls.from_dict(data, where)

    @classmethod
    def load(cls, path: Path) -> DeltaConfig:
        """Read a JSON file."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DeltaLLMError(f"Cannot read the configuration {path}: {error}.") from error
        return cls.from_json(text, str(path))


_CHOICES: dict[str, Any] = {
    "granularity": Granularity,
    "row_rule": RowRule,
    "prefill": Prefill,
    "cache_format": CacheFormat,
    "prefill_compute": PrefillCompute,
}

PROFILE_NAMES = ("paper", "balanced", "exact")


def profile(name: str, context: int = 2048) -> DeltaConfig:
    """A named configuration.

    Args:
        name: "paper" (element, one θ for all channels, window 5 % of the context, sink 1, delta in prefill and
            decode, float32), "balanced" (the default) or "exact" (θ = 0, float32).
        context: context length in tokens; profile "paper" takes its window from it.
    """
    if name == "paper":
        return DeltaConfig(
            threshold=0.5,
            window=max(1, round(PAPER_WINDOW_FRACTION * context)),
            sinks=1,
            granularity="element",
            prefill="delta",
            cache_format="float32",
        )
    if name == "balanced":
        return DeltaConfig()
    if name == "exact":
        return DeltaConfig(threshold=0.0, cache_format="float32")
    raise DeltaLLMError(f"There is no profile {name!r}: choose one of {', '.join(PROFILE_NAMES)}.")
