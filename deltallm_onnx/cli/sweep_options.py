"""What `sweep` searches, as options."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from deltallm_onnx.cli.knobs import Context
from deltallm_onnx.cli.option_groups import one_of, takes
from deltallm_onnx.cli.whole_numbers import at_least
from deltallm_onnx.cli.window import parse_window
from deltallm_onnx.config import CacheFormat, Granularity
from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class SpaceOptions:
    """What is searched; None leaves the choice to the objectives."""

    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Beside kl; several times for several [default: kv_bytes_per_token]."),
    ] = None
    time: Annotated[bool, typer.Option("--time", help="Measure decode time too, as one more objective.")] = False
    past: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="In the cache of timed steps [default: 1024 or less].")
    ] = None
    max_kl: Annotated[
        float | None, typer.Option(metavar="X", help="Trials with a larger kl are of no use, and their kind avoided.")
    ] = None
    granularity: Annotated[
        list[str] | None, typer.Option(metavar=one_of(Granularity), help="Several times for several.")
    ] = None
    rule: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Several times for several (docs/cli.md names them).")
    ] = None
    window: Annotated[
        str | None, typer.Option(metavar="TOKENS|N%,…", help="Newest tokens that stay exact, to choose from.")
    ] = None
    context: Context = None
    sinks: Annotated[
        str | None, typer.Option(metavar="TOKENS,…", help="First tokens that stay exact, to choose from.")
    ] = None
    v_skip: Annotated[
        str | None, typer.Option(metavar="ε,…", help="Values left out below ε times the largest probability.")
    ] = None
    cache_format: Annotated[
        list[str] | None, typer.Option(metavar=one_of(CacheFormat), help="Several times for several [default: all].")
    ] = None

    def __post_init__(self) -> None:
        at_least("context", self.context, 1)

    def windows(self, model_context: int | None) -> tuple[int, ...]:
        """Of --window, in tokens.

        Raises:
            DeltaLLMError: for one that is no number of tokens.
        """
        context = model_context if self.context is None else self.context
        return tuple(parse_window(part, context) for part in _parts(self.window))

    def all_sinks(self) -> tuple[int, ...]:
        """Of --sinks, in tokens.

        Raises:
            DeltaLLMError: for one that is no whole number.
        """
        try:
            return tuple(int(part) for part in _parts(self.sinks))
        except ValueError:
            raise DeltaLLMError(f"sinks is {self.sinks!r}: give whole numbers of tokens, such as 1,4.") from None

    def v_skips(self) -> tuple[float, ...]:
        """Of --v-skip.

        Raises:
            DeltaLLMError: for one that is no number.
        """
        try:
            return tuple(float(part) for part in _parts(self.v_skip))
        except ValueError:
            raise DeltaLLMError(
                f"v_skip is {self.v_skip!r}: give numbers from 0 to below 1, such as 0,0.001."
            ) from None


def _parts(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


takes_space_options = takes(SpaceOptions, "searched")
"""Lets a command take every field of `SpaceOptions` as an option, gathered into its parameter `searched`."""
