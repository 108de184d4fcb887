"""Readable, reproducible names: nodes and values after the module they come from, constants after their value.

    node             /model/layers.3/self_attn/q_proj/MatMul, further ones of the kind …/MatMul_1
    its value        /model/layers.3/self_attn/q_proj/MatMul_output (…_output_1 for a second output)
    the mask         /attention_mask/LessOrEqual
    weight           model.layers.3.self_attn.q_proj.weight, as in the checkpoint
    small constant   int64_2, int64_1d_1_2 after type, rank and elements

Graph inputs and outputs keep their names.
"""

from __future__ import annotations

import ast
import collections

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_WRAPPER = "causal_lm"  # the attribute of tracing.DenseGraph that holds the model
_LARGEST_SPELLED = 8  # elements of a constant that go into its name


def rename_everything(model: ir.Model) -> None:
    """Rename every node, value and initializer in place; reads torch's metadata, so it runs before that is stripped."""
    graph = model.graph
    kept = {*graph.inputs, *graph.outputs}
    taken: collections.Counter[str] = collections.Counter(str(value.name) for value in kept)
    for number, node in enumerate(graph):
        # Two steps, because a new name may still be an old one elsewhere.
        node.name = f"\0{number}" if _SCOPES in node.metadata_props else node.name
    for node in graph:
        node.name = _unique(f"{_scope(node)}/{node.op_type}", taken)
        for index, value in enumerate(node.outputs):
            if value not in kept:
                value.name = f"{node.name}_output" + (f"_{index}" if index else "")
    _rename_initializers(graph, taken)


def _scope(node: ir.Node) -> str:
    """The module path of a node, e.g. "/model/layers.3/self_attn"; "" for what belongs to no module."""
    scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    if scopes and scopes[-1].split("_")[0] == "visible":  # attention_ops.visible, shared by the layers
        return "/attention_mask"
    modules = [scope for scope in scopes[:-1] if scope == _WRAPPER or scope.startswith(f"{_WRAPPER}.")]
    if not modules:
        return ""
    parts: list[str] = []
    for part in modules[-1].split(".")[1:]:
        if part.isdigit() and parts:
            parts[-1] += f".{part}"
        else:
            parts.append(part)
    return "".join(f"/{part}" for part in parts)


def _unique(name: str, taken: collections.Counter[str]) -> str:
    """`name`, or `name_1`, `name_2`, … if it has been given before."""
    taken[name] += 1
    count = taken[name] - 1
    return f"{name}_{count}" if count else name


def _rename_initializers(graph: ir.Graph, taken: collections.Counter[str]) -> None:
    used = [value for node in graph for value in node.inputs if value is not None and value.is_initializer()]
    for value in dict.fromkeys([*used, *graph.initializers.values()]):  # in order of first use
        old = str(value.name)
        new = old.removeprefix(f"{_WRAPPER}.") if old.startswith(f"{_WRAPPER}.") else _constant_name(value)
        del graph.initializers[old]
        value.name = _unique(new, taken)
        graph.initializers[value.name] = value


def _constant_name(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is None or tensor.size > _LARGEST_SPELLED:
        return "constant"
    elements = tensor.numpy()
    rank = f"_{elements.ndim}d" if elements.ndim else ""
    return "_".join([f"{tensor.dtype.name.lower()}{rank}", *(str(element) for element in elements.ravel().tolist())])
