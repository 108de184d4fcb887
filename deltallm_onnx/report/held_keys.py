"""The keys that later queries read, token by token, and the runs they form: docs/spec.md sections 2 and 4."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.packed_sizes import PACKED_FORMATS
from deltallm_onnx.reference import hold
from deltallm_onnx.reference.hold import change_is_small, check_row_weight, check_threshold
from deltallm_onnx.reference.packed import CodingRules, PackedCache, PackedLayout
from deltallm_onnx.reference.packed_cache import CacheRows
from deltallm_onnx.reference.packed_rows import round_row
from deltallm_onnx.report.layer_inputs import LayerInputs

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class HeldKeys:
    """Keys of one layer, as the cache's format stores them.

    Attributes:
        exact: inside the window, float32 [Hkv, T, D].
        held: behind it, float32 [Hkv, T, D]; every token as if the window had passed it.
        repeats: whether the row before is repeated: channels, bool [Hkv, T, D], with element granularity, else whole
            rows, bool [Hkv, T, 1]; false for sinks and token 0.
    """

    exact: Array
    held: Array
    repeats: Array


def held_keys(layer: LayerInputs) -> HeldKeys:
    """Code all T keys of a layer by the oracle."""
    if layer.settings["cache_format"] in PACKED_FORMATS:
        return _packed(layer)
    settings = layer.settings
    exact = layer.key.astype(settings["cache_format"])
    held = hold(
        exact[None],
        layer.threshold,
        granularity=settings["granularity"],
        row_rule=settings["row_rule"],
        row_weight=layer.row_weight,
        sinks=settings["sinks"],
        refresh=settings["refresh"],
    )[0]
    repeats = np.zeros(held.shape, bool)
    repeats[:, 1:] = held[:, 1:] == held[:, :-1]
    repeats[:, : settings["sinks"]] = False
    if settings["granularity"] == "row":
        repeats = np.asarray(repeats.all(axis=-1, keepdims=True))
    return HeldKeys(exact.astype(np.float32), held.astype(np.float32), repeats)


def _packed(layer: LayerInputs) -> HeldKeys:
    """Keys of a packed cache, read back as docs/cache-format.md decodes them."""
    settings, key = layer.settings, layer.key
    heads, _, size = key.shape
    theta = check_threshold(layer.threshold, heads, size, settings["granularity"])
    weight = check_row_weight(layer.row_weight, heads, size)
    merges = settings["local_window_size"] == -1 and layer.attention_bias is None
    exact = np.stack([[round_row(row).decoded() for row in rows] for rows in key])
    held, repeats = np.zeros(key.shape, np.float32), np.zeros(key.shape, bool)
    for head in range(heads):
        rules = CodingRules(
            theta[head],
            weight[head],
            settings["granularity"],
            settings["row_rule"],
            settings["refresh"],
            merges=settings["granularity"] == "row" and merges,
        )
        rows = _filled(key[head], rules, settings)
        held[head] = np.repeat(rows.keys, rows.tokens, axis=0)[: key.shape[1]]
        if rules.granularity == "element":
            repeats[head] = _held_channels(exact[head], rules, settings["sinks"])
        else:
            repeats[head] = _held_rows(rows)[: key.shape[1], None]
    return HeldKeys(exact, held, repeats if settings["granularity"] == "element" else repeats[:, :, :1])


def _filled(keys: Array, rules: CodingRules, settings: dict[str, Any]) -> CacheRows:
    """The rows of a packed cache after all tokens [T, D] have left the window."""
    size = keys.shape[1]
    layout = PackedLayout(settings["cache_format"], size, settings["sinks"], settings["delta_window"])
    # So many more tokens push the last ones of the text out of the window.
    tokens = [*keys, *[keys[-1]] * layout.window]
    shape = (layout.rows_needed(len(tokens)) + layout.exact, layout.bytes_per_token)
    cache = PackedCache(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), layout, rules, 0)
    for token in tokens:
        cache.append(token, np.zeros(size, np.float32))
    return cache.rows()


def _held_rows(rows: CacheRows) -> npt.NDArray[np.bool_]:
    """Of every token, whether it repeats the one before; of a row's tokens it can only be the first that does not."""
    held = np.ones(int(rows.tokens.sum()), bool)
    held[rows.first_token] = rows.coded & (rows.spared == rows.tokens)
    return held


def _held_channels(keys: Array, rules: CodingRules, sinks: int) -> npt.NDArray[np.bool_]:
    """Of every token and channel, whether it was held; the row is rounded anew, so that values differ a little.

    Args:
        keys: rounded to codes, float32 [T, D].
        rules: with granularity "element".
        sinks: of the cache.
    """
    held = np.zeros(keys.shape, bool)
    before = keys[0]
    for t, row in enumerate(keys):
        if t > 0 and t >= sinks and not (rules.refresh > 0 and t % rules.refresh == 0):
            held[t] = change_is_small(row, before, rules.threshold)
        before = round_row(np.where(held[t], before, row)).decoded() if held[t].any() else row
    return held
