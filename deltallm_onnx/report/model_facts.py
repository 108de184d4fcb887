"""What the report is about: the file, its layers, its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltallm_onnx.dense_model import file_sha256
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.external_data import check_external_data
from deltallm_onnx.inspect import AttentionSiteInfo, Inspection, inspect_model
from deltallm_onnx.runtime import read_model_file

_REWRITTEN = "ai.deltallm::"


def inspect_rewritten(path: Path) -> tuple[Inspection, tuple[AttentionSiteInfo, ...]]:
    """A model and its rewritten attention.

    Raises:
        DeltaLLMError: where it is no model, or a dense one.
    """
    inspection = inspect_model(path)
    sites = tuple(site for site in inspection.sites if site.op.startswith(_REWRITTEN))
    if not sites:
        raise DeltaLLMError(
            f"{path} is a dense model, with nothing to report: rewrite it first with 'deltallm-onnx rewrite'."
        )
    return inspection, sites


def model_section(path: Path, inspection: Inspection, sites: tuple[AttentionSiteInfo, ...]) -> dict[str, Any]:
    """File, layers and settings, JSON-ready."""
    data = check_external_data(read_model_file(path), path.resolve().parent)
    return {
        "file": path.name,
        "folder": path.resolve().parent.name,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size + sum(file.stat().st_size for file in data),
        "metadata": inspection.metadata,
        "layers": [
            {
                "layer": site.layer,
                "operator": site.op,
                "query_heads": site.num_heads,
                "kv_heads": site.kv_num_heads,
                "head_size": site.head_size,
                "threshold": None if site.threshold is None else list(site.threshold),
                "settings": site.settings,
                "rule": site.rule,
            }
            for site in sites
        ],
    }
