"""`deltallm-onnx inspect`: what is inside an .onnx or .ort file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.cli.memory import inspection_plan, plan_lines
from deltallm_onnx.cli.output import print_json, print_table
from deltallm_onnx.hold_rules import form_label
from deltallm_onnx.inspect import AttentionSiteInfo, Inspection, inspect_model
from deltallm_onnx.passes.write_metadata import PLAN


def inspect_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A dense or rewritten .onnx, or an .ort.")],
    *,
    context: Annotated[
        int | None, typer.Option(metavar="TOKENS", help="Plan the peak of memory for so many tokens in the caches.")
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="Of the plan: texts at once [default: 1].")] = None,
    prompt_chunk: Annotated[
        int | None, typer.Option(metavar="S", help="Of the plan: prompt tokens per call [default: all at once].")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List every attention site of a model with its settings; weights are not loaded."""
    inspection = inspect_model(model)
    plan = inspection_plan(model, context, batch, prompt_chunk)
    if json_output:
        print_json(inspection.to_dict() | ({} if plan is None else {"memory_plan": plan.to_dict()}))
        return
    _print(inspection)
    for line in () if plan is None else plan_lines(plan, model):
        print(line)


def _print(inspection: Inspection) -> None:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(inspection.opset.items()))
    print(f"{inspection.path}: {len(inspection.sites)} attention sites; operator sets {opsets}")
    if inspection.cache_bytes_per_token:
        print(f"cache: {_cache_text(inspection)}")
    for key, value in inspection.metadata.items():
        print(f"{key}: {_plan_text(value) if key == PLAN else value}")
    if inspection.needs_library:
        print(f"needs the operator library for {', '.join(inspection.needs_library)}")
    elif inspection.ort_form == "fallback":
        print("runs without the operator library, slowly: delta attention is written out in standard operators")
    elif inspection.has_fallback:
        print("runs without the operator library too, slowly, by its function bodies")
    print(f"operator library: {inspection.library or inspection.library_problem}")
    if not inspection.sites:
        return
    shared = _shared_settings(inspection)
    if shared:
        print("every site: " + ", ".join(f"{name}={_short(value)}" for name, value in shared.items()))
    print_table(_table(inspection, shared))


def _plan_text(value: Any) -> str:
    """The rules of a plan by their names; what a file says otherwise is shown as it stands."""
    rules = value.get("rules") if isinstance(value, dict) else None
    if not isinstance(rules, dict) or not all(isinstance(layers, list) for layers in rules.values()):
        return str(value)
    parts = [
        f"{form_label(form)} in {'layers' if len(layers) > 1 else 'layer'} {', '.join(map(str, layers))}"
        for form, layers in rules.items()
    ]
    return "; ".join([*parts, f"sha256 {value.get('sha256')}"])


def _cache_text(inspection: Inspection) -> str:
    text = f"{byte_text(inspection.cache_bytes_per_token)} per token, all layers"
    if inspection.cache_bytes_per_row != inspection.cache_bytes_per_token:
        row = byte_text(inspection.cache_bytes_per_row)
        text += f", in sealed blocks; {row} in the sinks, the window and up to 128 tokens that wait for a block"
    return text


def _shared_settings(inspection: Inspection) -> dict[str, Any]:
    """The settings that all sites have with the same value: said once instead of once per layer."""
    first, *others = map(_settings, inspection.sites)
    return {
        name: value
        for name, value in first.items()
        if all(name in settings and settings[name] == value for settings in others)
    }


def _settings(site: AttentionSiteInfo) -> dict[str, Any]:
    """A site's settings by the names of the options: the rule says what row_rule and row weights say."""
    if site.rule is None:
        return site.settings
    settings = {name: value for name, value in site.settings.items() if name != "row_rule"}
    return {**settings, "rule": site.rule}


def _table(inspection: Inspection, shared: Mapping[str, Any]) -> Table:
    table = Table()
    for name in ("layer", "node", "operator", "heads", "KV heads", "head size", "θ", "own settings"):
        table.add_column(name, overflow="fold")
    for site in inspection.sites:
        own = {name: value for name, value in _settings(site).items() if name not in shared}
        table.add_row(
            str(site.layer),
            site.node or "(unnamed)",
            site.op,
            *("?" if n is None else str(n) for n in (site.num_heads, site.kv_num_heads, site.head_size)),
            _threshold_text(site),
            ", ".join(f"{name}={_short(value)}" for name, value in own.items()),
        )
    return table


def _threshold_text(site: AttentionSiteInfo) -> str:
    if site.threshold is None:
        return "–"
    low, high = site.threshold
    return f"{low:g}" if low == high else f"{low:.4g} … {high:.4g}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
