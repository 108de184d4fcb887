"""A digest of a model's weight matrices, which says of two files whether they hold the same model."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

#: Dimensions of what counts: constants and vectors depend on how a model was traced.
_MATRIX = 2


def weights_sha256(model: ir.Model) -> str:
    """Of all initializers with two or more dimensions, in hex, whatever their names, order and file.

    Tracing a checkpoint twice, under any file name, gives the same digest; storing its weights in another format gives
    another one.

    Args:
        model: external weights are read from disk in pieces, and not kept.
    """
    digests = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and len(tensor.shape) >= _MATRIX:
                digests.add(_digest(tensor))
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def _digest(tensor: ir.TensorProtocol) -> bytes:
    digest = hashlib.sha256(f"{tensor.dtype.name} {list(tensor.shape.numpy())}".encode())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.tofile(_Sink(digest))
    else:
        digest.update(tensor.tobytes())
    return digest.digest()


class _Sink:
    """A file that keeps nothing but a digest."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def write(self, data: bytes) -> int:
        """Take the bytes."""
        self._digest.update(data)
        return len(data)
