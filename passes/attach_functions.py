"""Attach the executable specification: model-local functions that run where the operator library is not registered."""

from __future__ import annotations

import onnx_ir as ir

from deltallm_onnx.passes import naming
from deltallm_onnx.passes.functions import Signature, fallback_functions


class AttachFunctionsPass(ir.passes.InPlacePass):
    """Give every DeltaAttention node of the graph a body in standard operators.

    Matched:        nodes ai.deltallm::DeltaAttention.
    Replacement:    none of them changes; the model gets functions of the same domain and name, and those of the two
                    smaller operators their bodies are written with. A runtime that has the operators' kernels
                    registered uses these instead.
    """

    def requires(self, model: ir.Model) -> None:
        """The names are free."""
        taken = sorted(str(key) for key in model.functions if key[0] == naming.DOMAIN)
        if taken:
            raise ir.passes.PreconditionError(f"The model has the functions {taken} already.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Attach the functions."""
        signature = Signature.of(naming.delta_nodes(model))
        for function in fallback_functions(signature, opset_version=model.opset_imports[""]):
            model.functions[function.identifier()] = function
        return ir.passes.PassResult(model, modified=True)
