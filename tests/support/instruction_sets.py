"""Which kernels of the operator library this machine can run."""

from __future__ import annotations

import functools

import numpy as np
from support.delta_feeds import HEADS, delta_feeds
from support.op_session import delta_attention_model, session

#: Beside the scalar kernels, names that DELTALLM_ISA may have.
VECTOR_SETS = ("avx2", "avx512", "avx512_vnni", "neon", "neon_dotprod")


@functools.cache
def vector_sets() -> tuple[str, ...]:
    """The vector instruction sets that the library has kernels for and this machine runs."""
    return tuple(filter(_runs, VECTOR_SETS))


def _runs(isa: str) -> bool:
    """Whether a session can be created; a set that this processor lacks is refused, and any other failure is one."""
    model = delta_attention_model(delta_feeds(np.random.default_rng(0)), **HEADS)
    try:
        session(model, isa=isa)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "which this processor cannot run" not in str(error):
            raise
        return False
    return True
