"""What happens at which step: learning rate and context length, as pure functions of the step.

Warm-up, stable, decay: the learning-rate factor rises linearly over `warmup` steps, stays at 1, and falls linearly to 0
over the last `decay` share of the steps. The last `long` share of the steps trains on `long_context` tokens per window,
the steps before on `context`. The tokens per step stay the same.

Nothing here depends on the clock. `steps` may be changed when a run is resumed: as long as the old and the new plan
agree on the steps already done (none of them in the decay), the run is the one that the new plan would have given from
the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from errors import UserError


@dataclass(frozen=True)
class Plan:
    """The schedule of a run; contexts and batch in tokens, shares in [0, 1]."""

    steps: int
    batch_tokens: int = 4096
    micro_tokens: int = 2048
    context: int = 512
    long_context: int = 2048
    warmup: int = 30
    decay: float = 0.4
    long: float = 0.15

    def check(self) -> None:
        """Refuse a plan whose parts do not fit together."""
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}; give at least 1")
        for name in ("context", "long_context"):
            tokens = getattr(self, name)
            if tokens < 16 or self.micro_tokens % tokens:
                raise UserError(f"{name} is {tokens}; it must be 16 or more and divide {self.micro_tokens}")
        if self.batch_tokens % self.micro_tokens:
            raise UserError(f"batch_tokens {self.batch_tokens} is no multiple of micro_tokens {self.micro_tokens}")
        for name in ("decay", "long"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} is {getattr(self, name)}; give a share between 0 and 1")

    @property
    def decay_start(self) -> int:
        """First step whose learning rate is lowered."""
        return self.steps - round(self.decay * self.steps)

    @property
    def long_start(self) -> int:
        """First step trained at `long_context`."""
        return self.steps - round(self.long * self.steps)

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate at `step` (0-based)."""
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = (self.steps - step) / (self.steps - self.decay_start) if step >= self.decay_start else 1.0
        return rising * falling

    def context_at(self, step: int) -> int:
        """Tokens per window at `step`."""
        return self.long_context if step >= self.long_start else self.context

    def window_offset(self, step: int) -> int:
        """How many windows of this step's context length were drawn before it."""
        start = self.long_start if step >= self.long_start else 0
        return (step - start) * (self.batch_tokens // self.context_at(step))
