"""What one dense pass over text says of every layer's queries, keys and values, channel by channel."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry
from deltallm_onnx.calibration.session import WindowSession, open_session, run_windows
from deltallm_onnx.config import DeltaConfig
from deltallm_onnx.dense_model import open_dense_model, quiet
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import model_geometry, naming, rewrite_model
from deltallm_onnx.passes.functions.signature import INPUTS
from deltallm_onnx.reference.rotary import rotary

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]

_QUERY, _KEY, _VALUE, _COS, _SIN = (INPUTS.index(name) for name in ("query", "key", "value", "cos_cache", "sin_cache"))
#: θ = 0 and exact prefill: this operator is dense attention, and its inputs have one layout whatever wrote the graph.
_EXACT = DeltaConfig(threshold=0.0, window=0, sinks=0, cache_format="float32")


@dataclasses.dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Root mean squares and deviations over the tokens of all windows; queries and keys after the rotary embedding.

    Attributes:
        geometry: the layer and its heads.
        scale: multiplies q·k.
        tokens: how many rows were counted.
        query_rms: float64 [Hkv, D], over the G query heads that share the KV head too.
        key_rms: float64 [Hkv, D].
        key_std: float64 [Hkv, D], σ of each channel.
        change_rms: float64 [Hkv, D], of k_t − k_{t−1} of neighbours in one window.
        value_rms: float64 [Hkv, D].
    """

    geometry: LayerGeometry
    scale: float
    tokens: int
    query_rms: Float64
    key_rms: Float64
    key_std: Float64
    change_rms: Float64
    value_rms: Float64


def layer_statistics(
    dense: Path, windows: npt.NDArray[np.int64], *, sinks: int = 0, threads: int | None = None
) -> list[LayerStatistics]:
    """Read windows with exact attention and sum up what goes into it.

    Args:
        dense: the .onnx file, not rewritten.
        windows: token ids [B, S], no padding; they are read one after the other.
        sinks: first tokens of every window that are not counted: they are never coded, and often outliers.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Returns:
        One entry per layer, in ascending order of their numbers.

    Raises:
        DeltaLLMError: for windows that leave fewer than two tokens to count, and as `rewrite` does.
    """
    if windows.ndim != 2 or len(windows) < 1 or windows.shape[1] < sinks + 2:
        raise DeltaLLMError(
            f"The windows have the shape {list(windows.shape)} with {sinks} sinks: give token ids [windows, tokens] "
            "with at least 2 tokens behind the sinks."
        )
    source = open_dense_model(dense)
    with quiet():
        geometry = model_geometry(source.model)
        plan = AttentionPlan.uniform(_EXACT, geometry)
        rewrite_model(source.model, _EXACT, plan=plan, fallback=False)
        layers = [_Layer(source.model, layer) for layer in geometry]
        _expose(source.model, layers)
    session = open_session(source, threads=threads)
    for window in windows:
        _read(session, window[None], layers, sinks)
    return [layer.result() for layer in layers]


class _Layer:
    """One layer's tensors in the graph, and its sums."""

    def __init__(self, model: ir.Model, geometry: LayerGeometry) -> None:
        self._geometry = geometry
        threshold = model.graph.initializers[naming.threshold_name(geometry.layer)]
        self._node = threshold.consumers()[0]
        rotates = self._node.attributes["do_rotary"].as_int()
        inputs = [_QUERY, _KEY, _VALUE, *([_COS, _SIN] if rotates else [])]
        self.values: dict[int, ir.Value] = {
            index: value for index in inputs if (value := self._node.inputs[index]) is not None
        }
        table = (geometry.kv_num_heads, geometry.head_size)
        self._sums = {key: np.zeros(table) for key in ("query", "key", "key_mean", "change", "value")}
        self._rows = self._steps = 0

    def add(self, tensors: dict[str, Array], sinks: int) -> None:
        """Count one window."""
        G, table = self._geometry.num_heads // self._geometry.kv_num_heads, next(iter(self._sums.values())).shape
        query, key, value = (x[:, :, sinks:].astype(np.float64) for x in self._heads_first(tensors))
        self._sums["query"] += np.square(query).sum(axis=(0, 2)).reshape(table[0], G, table[1]).mean(axis=1)
        self._sums["key"] += np.square(key).sum(axis=(0, 2))
        self._sums["key_mean"] += key.sum(axis=(0, 2))
        self._sums["change"] += np.square(np.diff(key, axis=2)).sum(axis=(0, 2))
        self._sums["value"] += np.square(value).sum(axis=(0, 2))
        self._rows += key.shape[0] * key.shape[2]
        self._steps += key.shape[0] * (key.shape[2] - 1)

    def result(self) -> LayerStatistics:
        mean = {key: total / (self._steps if key == "change" else self._rows) for key, total in self._sums.items()}
        scale = self._node.attributes["scale"].as_float()
        return LayerStatistics(
            geometry=self._geometry,
            scale=scale if scale != 0 else self._geometry.head_size**-0.5,
            tokens=self._rows,
            query_rms=np.sqrt(mean["query"]),
            key_rms=np.sqrt(mean["key"]),
            # Rounding may leave a channel that never changes a little below zero.
            key_std=np.sqrt(np.maximum(mean["key"] - np.square(mean["key_mean"]), 0)),
            change_rms=np.sqrt(mean["change"]),
            value_rms=np.sqrt(mean["value"]),
        )

    def _heads_first(self, tensors: dict[str, Array]) -> list[Array]:
        """float32 [B, H, S, D] of query, key and value, rotated as the operator does it."""
        given = {index: tensors[str(value.name)] for index, value in self.values.items()}
        Hq, Hkv, D = self._geometry.num_heads, self._geometry.kv_num_heads, self._geometry.head_size
        parts = [given[index] for index in (_QUERY, _KEY, _VALUE) if index in given]
        if len(parts) == 1:
            parts = np.split(parts[0], [Hq * D, (Hq + Hkv) * D], axis=2)
        B, S, _ = parts[0].shape
        query, key, value = (x.astype(np.float32).reshape(B, S, -1, D).transpose(0, 2, 1, 3) for x in parts)
        if _COS in given:
            positions = np.broadcast_to(np.arange(S), (B, S))
            interleaved = bool(self._node.attributes["rotary_interleaved"].as_int())
            query, key = (rotary(x, positions, given[_COS], given[_SIN], interleaved=interleaved) for x in (query, key))
        return [query, key, value]


def _expose(model: ir.Model, layers: list[_Layer]) -> None:
    """Make graph outputs of what goes into the layers; only these are computed."""
    model.graph.outputs.clear()
    for layer in layers:
        for value in layer.values.values():
            if value.const_value is None and value not in model.graph.outputs:
                model.graph.outputs.append(value)


def _read(session: WindowSession, window: npt.NDArray[np.int64], layers: list[_Layer], sinks: int) -> None:
    values = {str(value.name): value for layer in layers for value in layer.values.values()}
    computed = [name for name, value in values.items() if value.const_value is None]
    tensors = dict(zip(computed, run_windows(session, window, computed, {}), strict=True))
    for name, value in values.items():
        if value.const_value is not None:
            tensors[name] = value.const_value.numpy()
    for layer in layers:
        layer.add(tensors, sinks)
