"""Record in the model how it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan
from deltallm_onnx.config import DeltaConfig

PREFIX = "deltallm."
VERSION, CONFIG, SOURCE_SHA256, LAYERS, PLAN = (
    f"{PREFIX}{key}" for key in ("version", "config", "source_sha256", "layers", "plan")
)
#: Fields of DeltaConfig that a plan says anew for every layer.
_PLANNED = ("threshold", "granularity", "row_rule", "v_skip")


class WriteMetadataPass(ir.passes.InPlacePass):
    """Set the model's metadata properties.

    - `deltallm.version`: version of this package.
    - `deltallm.config`: the DeltaConfig, as one line of JSON; with a plan, without the fields the plan decides.
    - `deltallm.plan`: where there is a plan, the layers of every kind of rule in it and the SHA-256 of its JSON.
    - `deltallm.source_sha256`: SHA-256 of the source .onnx file, in hex, where the model came from a file. The file
      holds the graph and names its weights; weights in a separate data file are not read for it.
    - `deltallm.layers`: how many layers were rewritten.
    """

    def __init__(
        self,
        version: str,
        config: DeltaConfig,
        layers: int,
        source_sha256: str | None,
        plan: AttentionPlan | None = None,
    ) -> None:
        super().__init__()
        said = config.to_dict()
        if plan is not None:
            said = {name: value for name, value in said.items() if name not in _PLANNED}
        self._properties = {VERSION: version, CONFIG: _one_line(said), LAYERS: str(layers)}
        if plan is not None:
            self._properties[PLAN] = _one_line(plan.facts())
        if source_sha256 is not None:
            self._properties[SOURCE_SHA256] = source_sha256

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the properties; others are kept."""
        model.metadata_props.update(self._properties)
        return ir.passes.PassResult(model, modified=True)


def _one_line(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))
