"""All pictures of a report, by the part they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltallm_onnx.report.drawing.attention_maps import attention_map
from deltallm_onnx.report.drawing.bars import run_lengths
from deltallm_onnx.report.drawing.heat_maps import heat_map
from deltallm_onnx.report.drawing.lines import cache_growth, divergence_by_position, perplexity_by_position, times
from deltallm_onnx.report.drawing.scatter import pareto
from deltallm_onnx.report.drawing.theme import Picture, themed

#: Counter → title of its heat map, and whether it is a share.
_HEAT_MAPS = {
    "delta_sparsity": ("delta_sparsity, %", True),
    "qk_mac_sparsity": ("qk_mac_sparsity, %", True),
    "attn_mac_sparsity": ("attn_mac_sparsity, %", True),
    "kv_bytes_per_token": ("kv_bytes_per_token of a KV head, bytes", False),
}


def draw(data: Mapping[str, Any]) -> dict[str, list[Picture]]:
    """Draw what there are data for.

    Args:
        data: what `gather` returned, or what was read from its JSON.

    Raises:
        DeltaLLMError: without matplotlib.
    """
    drawn: dict[str, list[Picture]] = {}
    with themed():
        if (quality := data["quality"]) is not None:
            drawn["quality"] = [divergence_by_position(quality)] if "kl" in quality else []
            drawn["quality"].append(perplexity_by_position(quality))
        if (sparsity := data["sparsity"]) is not None:
            drawn["sparsity"] = [
                heat_map(
                    name.replace("_", "-"),
                    title,
                    sparsity["by_head"][name],
                    sparsity["layers"],
                    heads="KV head",
                    share=share,
                )
                for name, (title, share) in _HEAT_MAPS.items()
            ]
        if (attention := data["attention"]) is not None:
            title = "Attention moved, % of a query's, mean over queries"
            moved = heat_map(
                "attention-moved", title, attention["moved"], attention["layers"], heads="query head", whole=False
            )
            tokens = data["text"]["sample_tokens"]
            drawn["attention"] = [moved, *(attention_map(found, tokens) for found in attention["maps"])]
        if data["runs"] is not None:
            drawn["runs"] = [run_lengths(data["runs"])]
        if data["cache"] is not None:
            drawn["cache"] = [cache_growth(data["cache"])]
        if data["trade_off"] is not None:
            drawn["trade_off"] = [pareto(data["trade_off"], _here(data))]
        if data["speeds"] is not None:
            drawn["speeds"] = [
                times(record, number, kind, threads)
                for number, record in enumerate(data["speeds"])
                for kind, threads in sorted({(row["kind"], row["threads"]) for row in record["rows"]})
            ]
    return drawn


def _here(data: Mapping[str, Any]) -> dict[str, float] | None:
    quality, sparsity = data["quality"], data["sparsity"]
    if quality is None or sparsity is None or "kl" not in quality:
        return None
    return {"kl": quality["kl"], **sparsity["total"]}
