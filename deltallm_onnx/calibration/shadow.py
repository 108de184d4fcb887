"""What held keys change in the output of each KV head, on the dense model's own activations: all heads in one reading.

              query, key, value, past …
                 │                │
          DeltaAttention     DeltaAttention      the first reads held keys, θ an input; the second, its twin, reads all
                 │                │              keys exactly (prefill "exact", of an empty cache)
                 └────── Sub ─────┤
                          │       └──▶ the rest of the model, which is therefore dense
                  Σ of squares per KV head

The error of a head's output says how its thresholds compare. What an error costs the model in the end is nearly in
proportion, and is found by one reading per head (`sensitivity`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.calibration.probe import Probe
from deltallm_onnx.calibration.session import run_windows
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.passes import naming

Float64 = npt.NDArray[np.float64]


class ShadowProbe(Probe):
    """A `Probe` in which no layer sees what the others hold.

    Its arguments are `Probe`'s. A float16 cache counts as float32: ONNX Runtime would widen the twin's by itself, as no
    other node reads it, and the operator refuses that.
    """

    def __init__(self, dense: Path, config: DeltaConfig, **settings: Any) -> None:
        if config.cache_format == "float16":
            config = config.replace(cache_format="float32")
        super().__init__(dense, config, **settings)

    def errors(
        self, windows: npt.NDArray[np.int64], plan: AttentionPlan
    ) -> tuple[list[Float64], list[npt.NDArray[np.int64]]]:
        """Read whole windows from empty caches, each as one row of one batch.

        Args:
            windows: token ids [B, S], no padding.
            plan: of the kinds of rules this probe was built for.

        Returns:
            Per layer, in the order of `geometry`: sums of squared differences of the attention output from the dense
            one, float64 [Hkv], over the G query heads of each, and the statistics int64 [Hkv, 8].

        Raises:
            DeltaLLMError: as `run`.
        """
        names = [name(layer.layer) for layer in self.geometry for name in (_error_name, naming.statistics_name)]
        found: list[Any] = run_windows(self._session, windows, names, self._feeds(plan))
        return [error.astype(np.float64) for error in found[::2]], found[1::2]

    def _edit(self, model: ir.Model) -> None:
        super()._edit(model)
        for node, layer in zip(self._nodes(model), self.geometry, strict=True):
            _measure_beside_twin(model, node, layer)

    def _nodes(self, model: ir.Model) -> list[ir.Node]:
        """The attention nodes, in the order of `geometry`."""
        by_name = {str(_input_name(node)): node for node in naming.delta_nodes(model)}
        return [by_name[naming.threshold_name(layer.layer)] for layer in self.geometry]


def _input_name(node: ir.Node) -> str | None:
    value = node.inputs[naming.THRESHOLD]
    return None if value is None else value.name


def _error_name(layer: int) -> str:
    return f"deltallm.error.{layer}"


def _measure_beside_twin(model: ir.Model, node: ir.Node, layer: LayerGeometry) -> None:
    """Give a node an exact twin that the model goes on with, and the model an output with the squared differences."""
    held = node.outputs[naming.OUTPUT]
    attributes = dict(node.attributes)
    for name, value in (("prefill", "exact"), ("v_skip", 0.0)):
        attributes[name] = ir.convenience.convert_attribute(name, value)
    outputs = [
        ir.Value(name=f"deltallm.twin.{layer.layer}.{n}", type=v.type, shape=v.shape)
        for n, v in enumerate(node.outputs[: naming.STATISTICS])
    ]
    twin = ir.Node(node.domain, node.op_type, node.inputs, attributes.values(), outputs=outputs)
    exact = twin.outputs[naming.OUTPUT]
    ir.convenience.replace_all_uses_with(held, exact)
    difference = ir.node("Sub", [held, exact])
    square = ir.node("Mul", [difference.outputs[0], difference.outputs[0]])
    shape = _initializer(
        model, layer, "shape", [-1, layer.kv_num_heads, layer.num_heads // layer.kv_num_heads * layer.head_size]
    )
    by_head = ir.node("Reshape", [square.outputs[0], shape])
    axes = _initializer(model, layer, "axes", [0, 2])
    total = ir.node("ReduceSum", [by_head.outputs[0], axes], {"keepdims": 0})
    error = total.outputs[0]
    error.name, error.dtype, error.shape = _error_name(layer.layer), ir.DataType.FLOAT, ir.Shape([layer.kv_num_heads])
    model.graph.insert_after(node, [twin, difference, square, by_head, total])
    model.graph.outputs.append(error)


def _initializer(model: ir.Model, layer: LayerGeometry, role: str, numbers: list[int]) -> ir.Value:
    name = f"deltallm.error.{layer.layer}.{role}"
    value = ir.Value(name=name, const_value=ir.tensor(np.array(numbers, np.int64), name=name))
    value.dtype, value.shape = ir.DataType.INT64, ir.Shape([len(numbers)])
    model.graph.register_initializer(value)
    return value
