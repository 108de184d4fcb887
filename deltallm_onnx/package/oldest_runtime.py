"""Which ONNX Runtime a model needs: docs/sources.md and docs/install.md, "Versions"."""

from __future__ import annotations

import onnx

_QUANTISED = ("MatMulNBits", "GatherBlockQuantized")
#: Newest opset and IR version that a release knows, the oldest release first. 1.17 is the oldest for the operators.
_RELEASES = (("1.17", 20, 9), ("1.20", 21, 10), ("1.21", 22, 10), ("1.23", 23, 10))
_QUANTISED_FROM, _TWO_BITS_FROM = "1.23", "1.24"


def oldest_runtime(model: onnx.ModelProto) -> str:
    """The oldest release that runs a model, by its opset, its IR version and its quantised matrices."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    quantised = [node for node in nodes if node.op_type in _QUANTISED]
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if any(attribute.name == "bits" and attribute.i == 2 for node in quantised for attribute in node.attribute):
        return _TWO_BITS_FROM
    for release, newest_opset, newest_ir in _RELEASES:
        if opset <= newest_opset and model.ir_version <= newest_ir and (release == _QUANTISED_FROM or not quantised):
            return release
    return "1.24"
