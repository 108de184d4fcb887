"""Run an edited dense model: from memory, with its weights where they lie, whole windows at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from deltallm_onnx.dense_model import DenseModel
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import naming
from deltallm_onnx.runtime.library import register
from deltallm_onnx.runtime.session_options import reason, session_options

Array = npt.NDArray[Any]


@dataclasses.dataclass
class WindowSession:
    """An ONNX Runtime session and what it must be fed beside token ids.

    Attributes:
        path: the dense file it was made from, for refusals.
        token_inputs: element types of input_ids and, where the model has them, attention_mask and position_ids.
        empty_caches: a cache input's shape [Hkv, last] and type, by name.
        session: None once it is closed.
    """

    path: Path
    token_inputs: dict[str, np.dtype[Any]]
    empty_caches: dict[str, tuple[int, int, np.dtype[Any]]]
    session: ort.InferenceSession | None

    def close(self) -> None:
        """Free the session."""
        self.session = None


def open_session(source: DenseModel, *, threads: int | None = None) -> WindowSession:
    """A session on a model that was changed in memory.

    Args:
        source: the model, and the file whose data files hold its external weights: they are mapped, not copied.
        threads: intra-op threads; None leaves the choice to ONNX Runtime.

    Raises:
        DeltaLLMError: where the model takes inputs that cannot be supplied, the operator library is missing, or ONNX
            Runtime refuses the model.
    """
    options = session_options(threads=threads, weights_beside=source.path)
    token_inputs, empty_caches = _interface(source)
    if naming.delta_nodes(source.model):
        register(options)
    try:
        proto = ir.serde.serialize_model(source.model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise DeltaLLMError(f"ONNX Runtime {ort.__version__} refuses {source.path}: {reason(error)}") from error
    return WindowSession(source.path, token_inputs, empty_caches, session)


def run_windows(
    opened: WindowSession, windows: npt.NDArray[np.int64], outputs: Sequence[str], feeds: Mapping[str, Array]
) -> list[Array]:
    """Read windows from empty caches, as one batch.

    Args:
        opened: the session.
        windows: token ids [B, S], no padding; B and S at least 1.
        outputs: names of graph outputs.
        feeds: inputs beside tokens and caches, by name.

    Returns:
        One array per name.

    Raises:
        DeltaLLMError: for windows of another rank or without tokens, a closed session, and where ONNX Runtime stops.
    """
    if opened.session is None:
        raise DeltaLLMError(f"The session on {opened.path} is closed: open another one.")
    if windows.ndim != 2 or not windows.size:
        raise DeltaLLMError(f"The windows have the shape {list(windows.shape)}: give token ids [windows, tokens].")
    batch, tokens = windows.shape
    supplied = {
        "input_ids": windows,
        "attention_mask": np.ones((batch, tokens), np.int64),
        "position_ids": np.broadcast_to(np.arange(tokens), (batch, tokens)),
    }
    given: dict[str, Array] = {
        name: np.ascontiguousarray(supplied[name], dtype) for name, dtype in opened.token_inputs.items()
    }
    for name, (heads, last, dtype) in opened.empty_caches.items():
        given[name] = np.zeros((batch, heads, 0, last), dtype)
    try:
        results: list[Array] = opened.session.run(list(outputs), {**given, **feeds})
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise DeltaLLMError(
            f"ONNX Runtime stopped in {opened.path} with {batch} windows of {tokens} tokens: {reason(error)}"
        ) from error
    return results


def _interface(source: DenseModel) -> tuple[dict[str, np.dtype[Any]], dict[str, tuple[int, int, np.dtype[Any]]]]:
    tokens: dict[str, np.dtype[Any]] = {}
    caches: dict[str, tuple[int, int, np.dtype[Any]]] = {}
    for value in source.model.graph.inputs:
        name = str(value.name)
        if name in source.model.graph.initializers or name.startswith("deltallm."):
            continue
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(int(value.dtype or 0)))
        if name in ("input_ids", "attention_mask", "position_ids"):
            tokens[name] = dtype
            continue
        dims = [] if value.shape is None else list(value.shape.dims)
        if len(dims) != 4 or not isinstance(dims[1], int) or not isinstance(dims[3], int):
            raise DeltaLLMError(
                f"{source.path} has the input {name!r}, which cannot be supplied: a model to measure has input_ids, "
                "attention_mask, position_ids and caches [batch, KV heads, tokens, head size]."
            )
        caches[name] = (dims[1], dims[3], dtype)
    if "input_ids" not in tokens:
        raise DeltaLLMError(f"{source.path} has no input input_ids: give a language model.")
    return tokens, caches
