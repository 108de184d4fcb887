"""How long keys repeat: the runs that a row cache stores once, or the stretches in which single channels rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deltallm_onnx.report.held_keys import HeldKeys
from deltallm_onnx.report.layer_inputs import LayerInputs

#: First length of every bin; the last one has no end.
_BINS = (1, 2, 3, 5, 9, 17, 33, 65)


def run_section(layers: Sequence[LayerInputs], keys: Sequence[HeldKeys]) -> dict[str, Any]:
    """Runs of all tokens behind the sinks, as if the window had passed them.

    Args:
        layers: at least one.
        keys: of each layer.

    Returns:
        JSON-ready. Of every layer: runs, their mean and largest length in tokens, and the share of tokens (element
        granularity: of elements) in runs of each bin's lengths.
    """
    granularities = {layer.settings["granularity"] for layer in layers}
    return {
        "granularity": " and ".join(sorted(granularities)),
        "bins": [
            {"from": first, "to": following - 1 if following else None}
            for first, following in zip(_BINS, (*_BINS[1:], None), strict=True)
        ],
        "layers": [_layer(layer, held) for layer, held in zip(layers, keys, strict=True)],
    }


def run_lengths(repeats: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Lengths of all runs, one head and channel after the other.

    Args:
        repeats: bool [H, T, C]: whether a token repeats the one before it.
    """
    by_channel = repeats.transpose(0, 2, 1).reshape(-1, repeats.shape[1]).copy()
    by_channel[:, 0] = False
    starts = np.flatnonzero(~by_channel.reshape(-1))
    return np.diff(np.append(starts, by_channel.size))


def _layer(layer: LayerInputs, keys: HeldKeys) -> dict[str, Any]:
    lengths = run_lengths(keys.repeats[:, layer.settings["sinks"] :])
    bins = np.digitize(lengths, _BINS) - 1
    tokens = np.bincount(bins, weights=lengths, minlength=len(_BINS))
    return {
        "layer": layer.layer,
        "granularity": layer.settings["granularity"],
        "runs": len(lengths),
        "mean": float(lengths.mean()),
        "longest": int(lengths.max()),
        "share_by_bin": [float(share) for share in tokens / tokens.sum()],
    }
