"""Record in the model how it was made."""

from __future__ import annotations

import json

import onnx_ir as ir

from deltallm_onnx.config import DeltaConfig

PREFIX = "deltallm."
VERSION, CONFIG, SOURCE_SHA256, LAYERS = (f"{PREFIX}{key}" for key in ("version", "config", "source_sha256", "layers"))


class WriteMetadataPass(ir.passes.InPlacePass):
    """Set the model's metadata properties.

    - `deltallm.version`: version of this package.
    - `deltallm.config`: the DeltaConfig, as one line of JSON.
    - `deltallm.source_sha256`: SHA-256 of the source .onnx file, in hex, where the model came from a file. The file
      holds the graph and names its weights; weights in a separate data file are not read for it.
    - `deltallm.layers`: how many layers were rewritten.
    """

    def __init__(self, version: str, config: DeltaConfig, layers: int, source_sha256: str | None) -> None:
        super().__init__()
        self._properties = {
            VERSION: version,
            CONFIG: json.dumps(config.to_dict(), separators=(",", ":")),
            LAYERS: str(layers),
        }
        if source_sha256 is not None:
            self._properties[SOURCE_SHA256] = source_sha256

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the properties; others are kept."""
        model.metadata_props.update(self._properties)
        return ir.passes.PassResult(model, modified=True)
