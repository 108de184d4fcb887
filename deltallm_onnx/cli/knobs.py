"""Settings of delta attention as options that mean the same in several commands; None means not said."""

from __future__ import annotations

from typing import Annotated

import typer

from deltallm_onnx.cli.option_groups import one_of
from deltallm_onnx.config import Granularity, Prefill

Context = Annotated[
    int | None, typer.Option(metavar="TOKENS", help="Context length for N% [default: the model's own].")
]
Sinks = Annotated[int | None, typer.Option(metavar="TOKENS", help="First tokens that stay exact.")]
OneGranularity = Annotated[str | None, typer.Option(metavar=one_of(Granularity), help="What is held at once.")]
Refresh = Annotated[
    int | None, typer.Option(metavar="TOKENS", help="Restart the reference every so many tokens; 0 = never.")
]
VSkip = Annotated[
    float | None, typer.Option(metavar="ε", help="Leave out values below ε times the largest probability.")
]
PromptReading = Annotated[str | None, typer.Option(metavar=one_of(Prefill), help="Whether prompts read held keys too.")]
