"""Thresholds per layer and KV head: what a layer does otherwise than `DeltaConfig` says for all of them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from deltallm_onnx.config import DeltaConfig, Granularity, RowRule
from deltallm_onnx.errors import DeltaLLMError

FloatArray = npt.NDArray[np.float32]

#: Keys of a layer in JSON, in the order they are written.
_KEYS = ("layer", "granularity", "row_rule", "v_skip", "threshold", "row_weight")


@dataclasses.dataclass(frozen=True)
class LayerGeometry:
    """The heads of one attention layer.

    Attributes:
        layer: index of the cache, as in past_key_values.<layer>.
        num_heads: Hq.
        kv_num_heads: Hkv, a divisor of Hq.
        head_size: D, in channels.
    """

    layer: int
    num_heads: int
    kv_num_heads: int
    head_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class LayerPlan:
    """What differs from `DeltaConfig` in one layer (docs/spec.md sections 2, 5 and 7).

    Attributes:
        layer: index of the cache, as in past_key_values.<layer>.
        threshold: θ, float32 [Hkv] or, with granularity "element", [Hkv, D].
        row_weight: w of the row norms, float32 [Hkv, D]; None is all ones. Granularity "row" only.
        granularity: "element" holds single channels, "row" whole keys.
        row_rule: what a row's change is held against; only read with granularity "row".
        v_skip: ε in [0, 1): values with probability below ε·max may be left out.

    Raises:
        DeltaLLMError: for a number that is not finite or negative, a shape that does not go with the granularity, and
            an unknown choice, naming the layer and the field.
    """

    layer: int
    threshold: FloatArray
    row_weight: FloatArray | None
    granularity: Granularity
    row_rule: RowRule
    v_skip: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int) or self.layer < 0:
            raise DeltaLLMError(f"layer is {self.layer!r}: give the number of a layer, 0 or more.")
        where = f"layer {self.layer}"
        for name, kind in (("granularity", Granularity), ("row_rule", RowRule)):
            value, allowed = getattr(self, name), get_args(kind)
            if value not in allowed:
                raise DeltaLLMError(f"{where} has the {name} {value!r}: choose one of {', '.join(allowed)}.")
        if isinstance(self.v_skip, bool) or not isinstance(self.v_skip, int | float) or not 0 <= self.v_skip < 1:
            raise DeltaLLMError(f"{where} has the v_skip {self.v_skip!r}: give a number from 0 up to, but below, 1.")
        object.__setattr__(self, "v_skip", float(self.v_skip))
        object.__setattr__(self, "threshold", _checked(self.threshold, f"{where}, threshold"))
        theta = self.threshold
        if theta.ndim not in (1, 2) or not theta.size:
            raise DeltaLLMError(
                f"{where} has a threshold {list(theta.shape)}: give [KV heads] or [KV heads, head size]."
            )
        if theta.ndim == 2 and self.granularity == "row":
            raise DeltaLLMError(
                f"{where} has a threshold {list(theta.shape)}: granularity row takes one number per KV head."
            )
        if self.row_weight is None:
            return
        if self.granularity == "element":
            raise DeltaLLMError(f"{where} has a row_weight with granularity element: only rows have weights.")
        object.__setattr__(self, "row_weight", _checked(self.row_weight, f"{where}, row_weight"))
        shape = self.row_weight.shape
        if len(shape) != 2 or shape[0] != len(theta) or not shape[1]:
            raise DeltaLLMError(
                f"{where} has a row_weight {list(shape)} beside a threshold for {len(theta)} KV heads: give [KV heads, "
                "head size]."
            )

    @property
    def kv_num_heads(self) -> int:
        """Hkv."""
        return len(self.threshold)

    @property
    def head_size(self) -> int | None:
        """D, where a table per channel tells it."""
        tables = [table for table in (self.threshold, self.row_weight) if table is not None and table.ndim == 2]
        return tables[0].shape[1] if tables else None

    @property
    def form(self) -> str:
        """The kind of rule in words, such as "row absolute weighted" or "element"."""
        if self.granularity == "element":
            return "element" if self.threshold.ndim == 1 else "element per channel"
        return f"row {self.row_rule}" + ("" if self.row_weight is None else " weighted")

    def replace(self, **changes: Any) -> LayerPlan:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; every float32 as the shortest decimal that reads back as the same number."""
        return {
            "layer": self.layer,
            "granularity": self.granularity,
            "row_rule": self.row_rule,
            "v_skip": self.v_skip,
            "threshold": _decimals(self.threshold),
            "row_weight": None if self.row_weight is None else _decimals(self.row_weight),
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "the plan") -> LayerPlan:
        """Build from what `to_dict` wrote.

        Raises:
            DeltaLLMError: for anything else, naming `where` and the fault.
        """
        if not isinstance(data, dict):
            raise DeltaLLMError(f"{where} holds a {type(data).__name__} where a layer should be: give a JSON object.")
        _require_keys(data, where)
        layer = data["layer"]
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < 2**31:
            raise DeltaLLMError(f"{where} has the layer {layer!r}: give its number, 0 or more.")
        own = f"{where}, layer {layer}"
        weight = data["row_weight"]
        threshold = _parsed(data["threshold"], f"{own}, threshold")
        row_weight = None if weight is None else _parsed(weight, f"{own}, row_weight")
        try:
            return cls(layer, threshold, row_weight, data["granularity"], data["row_rule"], data["v_skip"])
        except DeltaLLMError as error:
            raise DeltaLLMError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The plans of all layers of a model, in ascending order of their numbers.

    Window, sinks, refresh, prefill and cache format are the same for all layers and stand in `DeltaConfig`.

    Raises:
        DeltaLLMError: without a layer, and where one appears twice.
    """

    layers: tuple[LayerPlan, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.layers, key=lambda layer: layer.layer))
        object.__setattr__(self, "layers", ordered)
        if not ordered:
            raise DeltaLLMError("The plan has no layer: give one entry for every attention layer.")
        for one, next_one in itertools.pairwise(ordered):
            if one.layer == next_one.layer:
                raise DeltaLLMError(f"The plan has layer {one.layer} twice: give one entry for every attention layer.")

    def __getitem__(self, layer: int) -> LayerPlan:
        """The plan of the layer with this number.

        Raises:
            KeyError: where there is none.
        """
        for entry in self.layers:
            if entry.layer == layer:
                return entry
        raise KeyError(layer)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values: {"layers": [...]}."""
        return {"layers": [layer.to_dict() for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: Any, where: str = "the plan") -> AttentionPlan:
        """Build from what `to_dict` wrote; other keys beside "layers" are not looked at.

        Raises:
            DeltaLLMError: for anything else, naming `where`, the layer and the fault.
        """
        entries = data.get("layers") if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise DeltaLLMError(f"{where} has no list of layers: give one entry for every attention layer.")
        layers = tuple(LayerPlan.from_dict(entry, where) for entry in entries)
        try:
            return cls(layers)
        except DeltaLLMError as error:
            raise DeltaLLMError(f"{where}: {error}") from error

    @classmethod
    def uniform(cls, config: DeltaConfig, geometry: Sequence[LayerGeometry]) -> AttentionPlan:
        """The plan that says for every layer what `config` says for all.

        Args:
            config: gives threshold, granularity, row_rule and v_skip.
            geometry: the layers.
        """
        return cls(
            tuple(
                LayerPlan(
                    layer=layer.layer,
                    threshold=np.full(layer.kv_num_heads, config.threshold, np.float32),
                    row_weight=None,
                    granularity=config.granularity,
                    row_rule=config.row_rule,
                    v_skip=config.v_skip,
                )
                for layer in geometry
            )
        )

    def refuse_misfit(self, geometry: Sequence[LayerGeometry]) -> None:
        """Refuse a plan for another model.

        Args:
            geometry: the model's layers.

        Raises:
            DeltaLLMError: naming the first layer that only one of the two has, or whose heads or channels differ.
        """
        planned, present = {entry.layer for entry in self.layers}, {layer.layer for layer in geometry}
        if missing := sorted(present - planned):
            raise DeltaLLMError(
                f"The plan says nothing of attention layer {missing[0]} (it has {len(planned)} layers, the model "
                f"{len(present)}): calibrate this model."
            )
        if unknown := sorted(planned - present):
            raise DeltaLLMError(
                f"The plan has a layer {unknown[0]}, which is no attention layer to rewrite in this model (the plan "
                f"has {len(planned)} layers, the model {len(present)}): calibrate this model."
            )
        for layer in geometry:
            entry = self[layer.layer]
            if entry.kv_num_heads != layer.kv_num_heads:
                raise DeltaLLMError(
                    f"The plan has {entry.kv_num_heads} KV heads in layer {layer.layer}, the model has "
                    f"{layer.kv_num_heads}: calibrate this model."
                )
            if entry.head_size not in (None, layer.head_size):
                raise DeltaLLMError(
                    f"The plan has {entry.head_size} channels per head in layer {layer.layer}, the model has "
                    f"{layer.head_size}: calibrate this model."
                )

    @property
    def sha256(self) -> str:
        """Of the plan's JSON in one line, in hex: the same plan has the same digest."""
        text = json.dumps(self.to_dict(), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def facts(self) -> dict[str, Any]:
        """What a rewritten model says of its plan in its metadata: the layers of every kind of rule, and the digest."""
        forms: dict[str, list[int]] = {}
        for entry in self.layers:
            forms.setdefault(entry.form, []).append(entry.layer)
        return {"rules": forms, "sha256": self.sha256}


def _checked(values: Any, where: str) -> FloatArray:
    """As a read-only float32 array of its own."""
    with np.errstate(over="ignore"):
        array = np.array(values, np.float32)
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise DeltaLLMError(f"{where} holds a negative or non-finite number: give numbers of at least 0.")
    array.setflags(write=False)
    return array


def _parsed(data: Any, where: str) -> FloatArray:
    """A JSON list of numbers, or of lists of numbers of one length."""
    rows = data if isinstance(data, list) else None
    if rows is not None and any(isinstance(row, list) for row in rows):
        lengths = {len(row) if isinstance(row, list) else -1 for row in rows}
        flat = [number for row in rows if isinstance(row, list) for number in row] if len(lengths) == 1 else None
    else:
        flat = rows
    if not flat or not all(_is_number(number) for number in flat):
        raise DeltaLLMError(f"{where} is not a list of numbers, nor one of equally long lists of numbers: give that.")
    with np.errstate(over="ignore"):
        return np.array(data, np.float64).astype(np.float32)


def _is_number(value: Any) -> bool:
    """A JSON number that a double can hold; infinities are refused later, with a sentence of their own."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**1023
    return isinstance(value, float)


def _require_keys(data: Mapping[str, Any], where: str) -> None:
    if missing := [key for key in _KEYS if key not in data]:
        raise DeltaLLMError(f"{where} has a layer without {missing[0]!r}: every layer has {', '.join(_KEYS)}.")
    if unknown := sorted(str(key) for key in data if key not in _KEYS):
        raise DeltaLLMError(f"{where} has a layer with the unknown key {unknown[0]!r}: known are {', '.join(_KEYS)}.")


def _decimals(array: FloatArray) -> list[Any]:
    """Nested lists; str of a float32 is the shortest decimal that reads back as the same float32."""
    if array.ndim > 1:
        return [_decimals(row) for row in array]
    return [float(str(number)) for number in array]
