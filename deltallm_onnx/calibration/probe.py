"""A dense model rewritten so that thresholds are inputs: one session measures every plan of the same kind of rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deltallm_onnx.attention_plan import AttentionPlan, LayerGeometry, LayerPlan
from deltallm_onnx.calibration.session import open_session, run_windows
from deltallm_onnx.config import DeltaConfig, Granularity, RowRule
from deltallm_onnx.dense_model import open_dense_model, quiet
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import model_geometry, naming, rewrite_model

__all__ = ["LayerGeometry", "Probe"]

Array = npt.NDArray[Any]


class Probe:
    """A dense .onnx rewritten in memory, with the thresholds (and row weights) of every layer as graph inputs.

    A window is read by one call with `prefill = "delta"`, whose outputs are those of token-by-token decoding
    (docs/spec.md section 3). The weights stay in their data file and are mapped from there. May be used in a `with`.

    Args:
        dense: the .onnx file, not rewritten.
        config: window, sinks, refresh and cache_format; with a packed cache its own rounding is part of what is
            measured. Its threshold, granularity, row_rule, v_skip and prefill are not read.
        granularity: of all layers, or one per layer in ascending order of their numbers.
        row_rule: the same for the rule.
        weighted: whether rows have channel weights, for all layers or per layer; not read for element layers.
        v_skip: the same for ε.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Attributes:
        geometry: the layers, in ascending order of their numbers.

    Raises:
        DeltaLLMError: as `rewrite` does for a model it cannot rewrite, for a setting that is not one per layer, and
            where the operator library is missing.
    """

    def __init__(
        self,
        dense: Path,
        config: DeltaConfig,
        *,
        granularity: Granularity | Sequence[Granularity],
        row_rule: RowRule | Sequence[RowRule] = "relative",
        weighted: bool | Sequence[bool] = False,
        v_skip: float | Sequence[float] = 0.0,
        threads: int | None = None,
    ) -> None:
        source = open_dense_model(dense)
        with quiet():
            self.geometry = model_geometry(source.model)
            count = len(self.geometry)
            settings = zip(
                self.geometry,
                _per_layer("granularity", granularity, count),
                _per_layer("row_rule", row_rule, count),
                _per_layer("weighted", weighted, count),
                _per_layer("v_skip", v_skip, count),
                strict=True,
            )
            self._template = AttentionPlan(tuple(_placeholder(*entry) for entry in settings))
            # A call computes in float32 whatever the finished model's prompts may do.
            measured = config.replace(prefill="delta", prefill_compute="float32")
            rewrite_model(source.model, measured, plan=self._template, statistics=True, fallback=False)
            self._edit(source.model)
        self.dense, self.config = dense, measured
        self._session = open_session(source, threads=threads)

    def run(self, windows: npt.NDArray[np.int64], plan: AttentionPlan) -> tuple[Array, list[npt.NDArray[np.int64]]]:
        """Read whole windows from empty caches, each as one row of one batch.

        Args:
            windows: token ids [B, S], no padding.
            plan: of the kinds of rules this probe was built for.

        Returns:
            Logits float32 [B, S, V], and the statistics int64 [Hkv, 8] of every layer, summed over the batch
            (docs/spec.md section 6), in the order of `geometry`.

        Raises:
            DeltaLLMError: for a plan of other rules, layers, heads or channels, and where ONNX Runtime stops.
        """
        names = ["logits", *(naming.statistics_name(layer.layer) for layer in self.geometry)]
        logits, *statistics = run_windows(self._session, windows, names, self._feeds(plan))
        return logits.astype(np.float32, copy=False), statistics

    def close(self) -> None:
        """Free the session; the probe cannot run afterwards."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _edit(self, model: ir.Model) -> None:
        """Change the rewritten model before it is opened."""
        _thresholds_as_inputs(model)

    def _feeds(self, plan: AttentionPlan) -> dict[str, Array]:
        plan.refuse_misfit(self.geometry)
        feeds: dict[str, Array] = {}
        for template, entry, layer in zip(self._template.layers, plan.layers, self.geometry, strict=True):
            _refuse_other_rule(template, entry)
            shape = template.threshold.shape
            theta = entry.threshold if entry.threshold.ndim == len(shape) else entry.threshold[:, None]
            feeds[naming.threshold_name(layer.layer)] = np.ascontiguousarray(np.broadcast_to(theta, shape))
            if template.row_weight is not None:
                weight = np.ones_like(template.row_weight) if entry.row_weight is None else entry.row_weight
                feeds[naming.row_weight_name(layer.layer)] = weight
        return feeds


def _per_layer(name: str, value: Any, count: int) -> Sequence[Any]:
    """One setting per layer, from one for all or a sequence."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise DeltaLLMError(f"{name} has {len(value)} entries for {count} layers: give one for all, or one per layer.")
    return value


def _placeholder(
    layer: LayerGeometry, granularity: Granularity, row_rule: RowRule, weighted: bool, v_skip: float
) -> LayerPlan:
    """A plan with the shapes of the inputs; one number per channel serves one per head too."""
    table = (layer.kv_num_heads, layer.head_size)
    by_rows = granularity == "row"
    return LayerPlan(
        layer=layer.layer,
        threshold=np.zeros(table[:1] if by_rows else table, np.float32),
        row_weight=np.ones(table, np.float32) if by_rows and weighted else None,
        granularity=granularity,
        row_rule=row_rule,
        v_skip=v_skip,
    )


def _refuse_other_rule(template: LayerPlan, entry: LayerPlan) -> None:
    fields = ["granularity", "v_skip", *(["row_rule"] if template.granularity == "row" else [])]
    for name in fields:
        built, asked = getattr(template, name), getattr(entry, name)
        if built != asked:
            raise DeltaLLMError(
                f"The plan has {name} {asked} in layer {entry.layer}, and this probe was built for {built}: build "
                "another one."
            )
    if entry.row_weight is not None and template.row_weight is None:
        raise DeltaLLMError(
            f"The plan has row weights in layer {entry.layer}, and this probe was built without: build another one."
        )


def _thresholds_as_inputs(model: ir.Model) -> None:
    """Turn the initializers that a plan wrote into inputs of the same names, types and shapes."""
    graph = model.graph
    for node in naming.delta_nodes(model):
        for index in (naming.THRESHOLD, naming.ROW_WEIGHT):
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None:
                graph.initializers.pop(str(value.name))
                value.const_value = None
                graph.inputs.append(value)
