"""Operators that are attention and are not rewritten: each is declined by its name, with what to do instead."""

from __future__ import annotations

from typing import NoReturn

import onnx_ir as ir

from deltallm_onnx.passes.site import NotUnderstood

DOMAIN = "com.microsoft"

_INSTEAD = "convert the model's Hugging Face directory instead"
#: Operator of com.microsoft → what to do about it.
NAMES = {
    "Attention": f"its projections are inside the operator: {_INSTEAD}",
    "DecoderMaskedMultiHeadAttention": f"it only reads a cache that other operators grow: {_INSTEAD}",
    "DecoderMaskedSelfAttention": f"its projections are inside the operator: {_INSTEAD}",
    "LinearAttention": "it keeps a state of fixed size instead of keys and values, so there is nothing to hold",
    "MultiHeadAttention": (
        "onnxruntime-genai's builder writes it for -p fp16 -e cpu: build the model with -p fp32 or -p int4, which give "
        "GroupQueryAttention"
    ),
    "PackedMultiHeadAttention": f"it has no cache: {_INSTEAD}",
    "PagedAttention": f"its cache lies in pages: {_INSTEAD}",
    "SparseAttention": f"it leaves out blocks of keys by a table: {_INSTEAD}",
}


def is_named(node: ir.Node) -> bool:
    """Whether a node is one of them."""
    return node.domain == DOMAIN and node.op_type in NAMES


def decline(node: ir.Node) -> NoReturn:
    """Say which one it is.

    Raises:
        NotUnderstood: always.
    """
    raise NotUnderstood(f"{DOMAIN}.{node.op_type} is not rewritten; {NAMES[node.op_type]}")
