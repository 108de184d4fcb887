"""The options that `convert` and `rewrite` share: every knob of `DeltaConfig`, and what is written beside it."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.calibration.plan_file import PlanOrigin, load_origin, load_plan
from deltallm_onnx.cli.knobs import OneGranularity, PromptReading, Refresh, Sinks, VSkip
from deltallm_onnx.cli.option_groups import one_of, takes
from deltallm_onnx.cli.whole_numbers import at_least
from deltallm_onnx.cli.window import parse_window
from deltallm_onnx.config import PROFILE_NAMES, CacheFormat, DeltaConfig, PrefillCompute, profile
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.hold_rules import RULES, find_rule


@dataclasses.dataclass(frozen=True)
class DeltaOptions:
    """What the user said; None means not said. Options override the files, --config overrides the profile."""

    profile: Annotated[
        str | None, typer.Option(help=f"Start from a named configuration: {' | '.join(PROFILE_NAMES)}.")
    ] = None
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file with fields of DeltaConfig.")] = None
    plan: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings and thresholds per KV head, as calibrate wrote them."),
    ] = None
    threshold: Annotated[float | None, typer.Option(metavar="θ", help="Largest change that is held; 0 is exact.")] = (
        None
    )
    window: Annotated[
        str | None, typer.Option(metavar="TOKENS|N%", help="Newest tokens that stay exact, or a share of the context.")
    ] = None
    context: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Context length for N%, and for int4 caches in onnxruntime-genai [default: the model's own].",
        ),
    ] = None
    sinks: Sinks = None
    granularity: OneGranularity = None
    rule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="By which changes are held: relative, absolute, uniform, or one that only a calibration can follow "
            "(docs/cli.md names them).",
        ),
    ] = None
    refresh: Refresh = None
    v_skip: VSkip = None
    prefill: PromptReading = None
    cache_format: Annotated[
        str | None, typer.Option(metavar=one_of(CacheFormat), help="Storage of keys and values.")
    ] = None
    prefill_compute: Annotated[
        str | None, typer.Option(metavar=one_of(PrefillCompute), help="Arithmetic of prompts.")
    ] = None
    unfused: Annotated[
        bool, typer.Option("--unfused", help="Write two small operators per layer instead of the fused one.")
    ] = False
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Leave layers dense that cannot be rewritten, instead of refusing.")
    ] = False
    statistics: Annotated[
        bool | None,
        typer.Option(
            "--statistics/--no-statistics",
            help="Count what is skipped, as graph outputs [default: yes, but not in folders of onnxruntime-genai].",
        ),
    ] = None
    copy_library: Annotated[
        bool,
        typer.Option(
            "--copy-library/--no-copy-library",
            help="Put the operator library beside a model of onnxruntime-genai, for machines like this one.",
        ),
    ] = True
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False

    def resolve(self, model_context: int | None) -> DeltaConfig:
        """The configuration that the options, the file and the profile, or the calibration, make together.

        Args:
            model_context: the model's context length in tokens, if known; --context goes before it.

        Raises:
            DeltaLLMError: for a value out of range, an unreadable file, an unknown profile, and a window that depends
                on a context nobody knows.
        """
        at_least("context", self.context, 1)
        if self.calibrated is not None:
            self._refuse_beside_plan()
        context = model_context if self.context is None else self.context
        from_file = _fields_in(self.config)
        said: dict[str, Any] = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(DeltaConfig)
            if getattr(self, field.name, None) is not None
        }
        if self.window is not None:
            said["window"] = parse_window(self.window, context)
        base = DeltaConfig() if self.calibrated is None else self.calibrated[0]
        if self.profile is not None:
            if self.profile == "paper" and context is None and "window" not in {**from_file, **said}:
                raise DeltaLLMError(
                    "Profile 'paper' takes its window from the context length, which is not known here (no "
                    "config.json beside the model): give --context TOKENS or --window TOKENS."
                )
            base = profile(self.profile) if context is None else profile(self.profile, context)
        config = base.replace(**{**from_file, **said})
        return (
            config if self.rule is None else config.replace(row_rule=find_rule(config.granularity, self.rule).row_rule)
        )

    def refuse_rule_to_calibrate(self, config: DeltaConfig) -> None:
        """Refuse a rule that a single threshold cannot follow, where nothing is calibrated.

        Raises:
            DeltaLLMError: naming those that it can.
        """
        if self.rule is not None and find_rule(config.granularity, self.rule).calibrated:
            plain = [name for (kind, name), rule in RULES.items() if kind == config.granularity and not rule.calibrated]
            raise DeltaLLMError(
                f"Rule {self.rule} takes statistics of the model, which a calibration measures, and nothing is "
                f"calibrated here: choose {' or '.join(plain)}, or use 'deltallm-onnx calibrate' and --plan."
            )

    @functools.cached_property
    def calibrated(self) -> tuple[DeltaConfig, AttentionPlan] | None:
        """What stands in the file of --plan; None without one.

        Raises:
            DeltaLLMError: as `load_plan`.
        """
        return None if self.plan is None else load_plan(self.plan)

    @property
    def origin(self) -> PlanOrigin | None:
        """The model that --plan was found for, where its file says so."""
        return None if self.plan is None else load_origin(self.plan)

    def _refuse_beside_plan(self) -> None:
        """Refuse what a plan says itself."""
        for name in ("profile", "config", "threshold", "granularity", "rule", "v_skip"):
            if getattr(self, name) is not None:
                option = name.replace("_", "-")
                raise DeltaLLMError(f"--{option} is given beside --plan {self.plan}, which says that: leave out one.")


takes_delta_options = takes(DeltaOptions, "options")
"""Lets a command take every field of `DeltaOptions` as an option, gathered into its parameter `options`."""


def _fields_in(path: Path | None) -> dict[str, Any]:
    """The fields that a configuration file sets, checked."""
    if path is None:
        return {}
    DeltaConfig.load(path)
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields
