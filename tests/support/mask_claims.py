"""What the interpreter claims of a mask graph, and what ONNX Runtime computes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from support.attention_models import runner

from deltallm_onnx.passes.affine import dimension
from deltallm_onnx.passes.mask_interpreter import MaskInterpreter
from deltallm_onnx.passes.masks import MaskContract, read_mask
from deltallm_onnx.passes.site import MaskMeaning

#: New and past tokens.
SIZES = [(1, 0), (5, 0), (1, 7), (3, 11), (4, 1)]


def claimed(model: onnx.ModelProto) -> MaskMeaning:
    """What the interpreter says of the only output of `mask_graph`. Raises NotUnderstood where it declines."""
    loaded = ir.serde.deserialize_model(model)
    ids, _, past = loaded.graph.inputs
    contract = MaskContract(dimension(past, 2), dimension(ids, 1), dimension(past, 0))
    return read_mask(loaded.graph.outputs[0], contract, MaskInterpreter())


def paddings(batch: int, total: int) -> list[NDArray[np.int64]]:
    """Padding on the left, b tokens of row b; and holes."""
    left = (np.arange(total)[None, :] >= np.arange(batch)[:, None]).astype(np.int64)
    holes = np.random.default_rng(total).integers(0, 2, (batch, total))
    return [left, holes]


SeenKeys = Callable[[int, int, NDArray[Any]], NDArray[np.bool_]]


def computed_by(model: onnx.ModelProto) -> SeenKeys:
    """Where a mask lets a key be seen, computed by ONNX Runtime: true, or exactly 0, the other numbers hiding.

    Returns:
        A function of new tokens, past tokens and padding [batch, total] that gives [batch, 1, new, past + new]. It
        raises CannotRun where the mask cannot be computed or does not broadcast to the scores.
    """
    try:
        run = runner(model)
    except _ERRORS as error:
        raise CannotRun from error

    def seen_keys(new: int, past: int, padding: NDArray[Any]) -> NDArray[np.bool_]:
        batch = len(padding)
        feeds = {
            "input_ids": np.zeros((batch, new), np.int64),
            "attention_mask": padding.astype(np.int64),
            "past_key_values.0.key": np.zeros((batch, 2, past, 5), np.float32),
        }
        try:
            (values,) = run(feeds).values()
            values = np.broadcast_to(values, (batch, values.shape[1] if values.ndim == 4 else 1, new, past + new))
        except (*_ERRORS, ValueError) as error:
            raise CannotRun from error
        if values.dtype != np.bool_:
            assert (values[values != 0] <= (-65504 if values.dtype == np.float16 else -1e30)).all(), np.unique(values)
        seen: NDArray[np.bool_] = values if values.dtype == np.bool_ else values == 0
        np.testing.assert_array_equal(seen, np.broadcast_to(seen[:, :1], seen.shape))
        return seen[:, :1]

    return seen_keys


class CannotRun(Exception):  # noqa: N818 - not an error: no claim about such a mask can be wrong
    """ONNX Runtime refuses a mask, or attention would."""


_STATE = onnxruntime.capi.onnxruntime_pybind11_state
_ERRORS = (_STATE.Fail, _STATE.InvalidArgument, _STATE.RuntimeException, _STATE.InvalidGraph, _STATE.NotImplemented)
