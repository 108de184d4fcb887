"""The options of `calibrate`, and what they ask for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from deltallm_onnx.calibration.effort import EFFORTS
from deltallm_onnx.cli.knobs import Context, OneGranularity, PromptReading, Refresh, Sinks, VSkip
from deltallm_onnx.cli.option_groups import one_of, takes
from deltallm_onnx.cli.whole_numbers import at_least
from deltallm_onnx.cli.window import parse_window
from deltallm_onnx.config import CacheFormat, DeltaConfig
from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Which text, and how much of it."""

    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Text to calibrate on, several times for several [default: bundled books]."),
    ] = None
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="The same: local files, text or JSON lines.")
    ] = None
    text_key: Annotated[str, typer.Option(metavar="KEY", help="Of the text in JSON lines.")] = "text"
    window_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens read at once [default: the model's context, at most 1024]."),
    ] = None
    text_windows: Annotated[
        int | None, typer.Option(metavar="N", help="So many such readings of the text, at most.")
    ] = None

    def __post_init__(self) -> None:
        at_least("window-tokens", self.window_tokens, 2)
        at_least("text-windows", self.text_windows, 3)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files.

        Raises:
            DeltaLLMError: for a dataset that is no local file.
        """
        for name in self.dataset or ():
            if not Path(name).is_file():
                raise DeltaLLMError(
                    f"There is no file {name}: --dataset reads local files, so save the data set's text (.txt, or "
                    ".jsonl with --text-key) first."
                )
        return (*(self.text or ()), *map(Path, self.dataset or ()))


@dataclasses.dataclass(frozen=True)
class CandidateOptions:
    """What thresholds are sought for; None leaves the choice to the calibration or to the default configuration."""

    window: Annotated[
        str | None,
        typer.Option(metavar="TOKENS|N%,…", help="Newest tokens that stay exact; of several, the best is taken."),
    ] = None
    context: Context = None
    sinks: Sinks = None
    granularity: OneGranularity = None
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Try only this rule; several times for several (docs/cli.md names them)."),
    ] = None
    refresh: Refresh = None
    v_skip: VSkip = None
    prefill: PromptReading = None
    cache_format: Annotated[
        str | None, typer.Option(metavar=one_of(CacheFormat), help="Storage of keys and values; it is measured too.")
    ] = None
    effort: Annotated[str, typer.Option(metavar=" | ".join(EFFORTS), help="How much is measured.")] = "full"
    confidence: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="With which kl and ppl are kept on more text of the kind, 0.5–0.99 [default: 0.7]."
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", help="Of the confidence intervals.")] = 0
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", help="Threads within an operator [default: ONNX Runtime's choice]."),
    ] = None

    def __post_init__(self) -> None:
        at_least("context", self.context, 1)
        at_least("seed", self.seed, 0)
        at_least("threads", self.threads, 1)

    def config(self) -> DeltaConfig:
        """The global settings, but for the window.

        Raises:
            DeltaLLMError: for a value out of range.
        """
        said = {
            name: getattr(self, name)
            for name in ("sinks", "granularity", "refresh", "v_skip", "prefill", "cache_format")
        }
        return DeltaConfig().replace(**said)

    def windows(self, model_context: int | None) -> tuple[int, ...]:
        """The exact windows to choose from, in tokens; empty where nothing was said.

        Raises:
            DeltaLLMError: for one that is no number of tokens.
        """
        context = model_context if self.context is None else self.context
        parts = [] if self.window is None else self.window.split(",")
        return tuple(dict.fromkeys(parse_window(part, context) for part in parts))


takes_text_options = takes(TextOptions, "corpus")
"""Lets a command take every field of `TextOptions` as an option, gathered into its parameter `corpus`."""

takes_candidate_options = takes(CandidateOptions, "candidates")
"""Lets a command take every field of `CandidateOptions` as an option, gathered into its parameter `candidates`."""
