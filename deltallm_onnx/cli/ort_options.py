"""The options that `convert` and `rewrite` share for models in ONNX Runtime's own format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import typer

from deltallm_onnx.cli.option_groups import one_of, takes
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.ort_format import OrtForm, OrtPlatform
from deltallm_onnx.ort_format.conversion import in_ort_format
from deltallm_onnx.runtime.model_file import ORT_SUFFIX

ModelFormat = Literal["onnx", "ort"]


@dataclasses.dataclass(frozen=True)
class OrtOptions:
    """What the user said; None means not said."""

    model_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar=one_of(ModelFormat),
            help="ort is ONNX Runtime's own format: one file, for small devices and minimal builds [default: by OUT].",
        ),
    ] = None
    ort_form: Annotated[
        str | None,
        typer.Option(
            metavar=one_of(OrtForm),
            help="An .ort freezes one: calls of the operator library, or attention in standard operators, slow, for "
            "where there is no library [default: operator].",
        ),
    ] = None
    ort_platform: Annotated[
        str | None,
        typer.Option(metavar=one_of(OrtPlatform), help="Processors that an .ort is optimized for [default: any]."),
    ] = None

    def applied(self, action: Callable[..., Any], out: Path) -> Callable[..., Any]:
        """`convert` or `rewrite`, writing what the options ask for.

        Raises:
            DeltaLLMError: for values there are not, options that contradict each other, and another suffix than the
                format's.
        """
        if not self.wanted(out):
            return action
        form = cast("OrtForm", self.ort_form or "operator")
        return in_ort_format(action, form=form, platform=cast("OrtPlatform | None", self.ort_platform))

    def wanted(self, out: Path) -> bool:
        """Whether an .ort is to be written; checks the options on the way, as `applied` says."""
        for name, value, choices in (
            ("format", self.model_format, ModelFormat),
            ("ort-form", self.ort_form, OrtForm),
            ("ort-platform", self.ort_platform, OrtPlatform),
        ):
            if value is not None and value not in get_args(choices):
                raise DeltaLLMError(f"--{name} is {value!r}: choose one of {', '.join(get_args(choices))}.")
        is_ort = out.suffix == ORT_SUFFIX
        if self.model_format == "ort" and not is_ort:
            raise DeltaLLMError(f"{out} does not end in .ort, by which every program tells that format: give another.")
        if self.model_format == "onnx" and is_ort:
            raise DeltaLLMError(f"{out} ends in .ort, and --format onnx is asked for: leave out one of them.")
        if not is_ort:
            for name, value in (("ort-form", self.ort_form), ("ort-platform", self.ort_platform)):
                if value is not None:
                    raise DeltaLLMError(f"--{name} {value} is for an .ort, and {out} is none: name it .ort.")
        return is_ort


takes_ort_options = takes(OrtOptions, "ort")
"""Lets a command take every field of `OrtOptions` as an option, gathered into its parameter `ort`."""
