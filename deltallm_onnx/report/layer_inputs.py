"""What attention layers of a rewritten model are given: queries, keys and values as the dense model has them.

The model is opened in memory with `prefill = "exact"`: a first prompt read by one call is then attended exactly, so
every layer's inputs are the dense model's, and no dense file is needed (docs/spec.md section 3).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deltallm_onnx.calibration.session import open_session, run_windows
from deltallm_onnx.dense_model import open_dense_model
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import naming
from deltallm_onnx.passes.functions.signature import INPUTS, OUTPUTS, attribute_values
from deltallm_onnx.reference import rotary

Array = npt.NDArray[Any]

#: Inputs of DeltaAttention that say what a layer computes; the others say which rows are real, and here all are.
_READ = (
    "query",
    "key",
    "value",
    "cos_cache",
    "sin_cache",
    "position_ids",
    "attention_bias",
    "head_sink",
    "threshold",
    "row_weight",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerInputs:
    """One attention layer reading T tokens from an empty cache.

    Attributes:
        layer: index of the cache.
        query: after rotation, float32 [Hq, T, D].
        key: after rotation, float32 [Hkv, T, D].
        value: float32 [Hkv, T, D].
        threshold: θ, float32 [Hkv] or [Hkv, D].
        row_weight: w, float32 [Hkv, D], or None.
        attention_bias: float [Hq, T, T], or None.
        head_sink: float [Hq], or None.
        settings: the operator's attributes by name, as the file has them.
        statistics: what the operator counted, int64 [Hkv, 8].
        output: what the operator returned, float [T, Hq·D].
    """

    layer: int
    query: Array
    key: Array
    value: Array
    threshold: Array
    row_weight: Array | None
    attention_bias: Array | None
    head_sink: Array | None
    settings: dict[str, Any]
    statistics: npt.NDArray[np.int64]
    output: Array

    @property
    def scale(self) -> float:
        """What multiplies q·k."""
        given = float(self.settings["scale"])
        return given if given != 0 else float(1 / np.sqrt(self.query.shape[-1]))


def layer_inputs(model: Path, token_ids: npt.NDArray[np.int64], *, threads: int | None = None) -> list[LayerInputs]:
    """Read a text by one call and note what every rewritten layer is given.

    Args:
        model: a rewritten .onnx file.
        token_ids: int64 [T].
        threads: within an operator; None leaves the choice to ONNX Runtime.

    Returns:
        One entry per DeltaAttention node, by layer.

    Raises:
        DeltaLLMError: for a file without such nodes, and where it cannot be read or run.
    """
    source = open_dense_model(model)
    nodes = naming.delta_nodes(source.model)
    if not nodes:
        raise DeltaLLMError(f"{model} has no DeltaAttention node: give a model that convert or rewrite has written.")
    # Settings are the file's; what is changed below serves this reading alone.
    settings = {_layer(node): attribute_values(node) for node in nodes}
    outputs = [name for node in nodes for name in _watch(source.model.graph, node)]
    _free_rows(source.model.graph)
    session = open_session(source, threads=threads)
    arrays = run_windows(session, token_ids[None], outputs, {})
    session.close()
    found: dict[int, dict[str, Array]] = {}
    for name, array in zip(outputs, arrays, strict=True):
        _, _, layer, what = name.split(".")
        found.setdefault(int(layer), {})[what] = array
    return [_described(layer, settings[layer], found[layer]) for layer in sorted(found)]


def _layer(node: ir.Node) -> int:
    """The layer by the name of its cache, `past_key_values.<layer>.key`."""
    past = node.inputs[naming.PAST_KEY]
    parts = "" if past is None or past.name is None else past.name.split(".")
    if len(parts) != 3 or not parts[1].isdecimal():
        raise DeltaLLMError(
            f"The attention node {node.name!r} has no cache named past_key_values.N.key: convert the model again."
        )
    return int(parts[1])


def _watch(graph: ir.Graph, node: ir.Node) -> list[str]:
    """Make inputs and results of a node outputs of the graph; their names."""
    layer = _layer(node)
    node.attributes["prefill"] = ir.AttrString("prefill", "exact")
    node.attributes["prefill_compute"] = ir.AttrString("prefill_compute", "float32")
    watched = {
        what: value for what, value in zip(INPUTS, node.inputs, strict=False) if what in _READ and value is not None
    }
    if len(node.outputs) <= naming.STATISTICS:
        node.resize_outputs(len(OUTPUTS))
        node.outputs[naming.STATISTICS].name = f"{node.name}/statistics"
    watched["statistics"] = node.outputs[naming.STATISTICS]
    watched["output"] = node.outputs[naming.OUTPUT]
    watched["statistics"].dtype = ir.DataType.INT64
    # What the file does not say of the output is the query's (docs/spec.md section 7).
    if watched["output"].type is None:
        watched["output"].type = watched["query"].type
    names = []
    for what, value in watched.items():
        # An initializer or an input cannot itself be an output.
        copy = ir.node("Identity", [value], name=f"deltallm.watch.{layer}.{what}/Identity")
        copy.outputs[0].name = f"deltallm.watch.{layer}.{what}"
        copy.outputs[0].type = value.type
        graph.append(copy)
        graph.outputs.append(copy.outputs[0])
        names.append(copy.outputs[0].name)
    return names


def _free_rows(graph: ir.Graph) -> None:
    """Caches whose rows the file fixes may be empty here."""
    for value in graph.inputs:
        if (value.name or "").startswith("past_key_values.") and value.shape is not None and len(value.shape) == 4:
            value.shape = ir.Shape([value.shape[0], value.shape[1], None, value.shape[3]])
    for value in graph.outputs:
        if (value.name or "").startswith("present.") and value.shape is not None and len(value.shape) == 4:
            value.shape = ir.Shape([value.shape[0], value.shape[1], None, value.shape[3]])


def _described(layer: int, settings: dict[str, Any], found: dict[str, Array]) -> LayerInputs:
    heads, kv_heads = settings["num_heads"], settings["kv_num_heads"]
    query, key, value = found["query"], found.get("key"), found.get("value")
    if key is None or value is None:
        width = query.shape[2] // (heads + 2 * kv_heads)
        query, key, value = np.split(query, [heads * width, (heads + kv_heads) * width], axis=2)
    tokens = query.shape[1]
    query, key, value = (
        array[0].reshape(tokens, count, -1).transpose(1, 0, 2).astype(np.float32)
        for array, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    if settings["do_rotary"]:
        positions = found.get("position_ids", np.arange(tokens)[None])
        tables = found["cos_cache"], found["sin_cache"]
        query, key = (
            rotary(array[None], positions, *tables, interleaved=bool(settings["rotary_interleaved"]))[0]
            for array in (query, key)
        )
    bias = found.get("attention_bias")
    return LayerInputs(
        layer=layer,
        query=query,
        key=key,
        value=value,
        threshold=found["threshold"],
        row_weight=found.get("row_weight"),
        attention_bias=None if bias is None else np.broadcast_to(bias[0], (heads, *bias.shape[2:])),
        head_sink=found.get("head_sink"),
        settings=settings,
        statistics=found["statistics"],
        output=found["output"][0],
    )
