"""Attention geometries of well-known models."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Sizes of one attention layer: query heads Hq, key/value heads Hkv, head size D."""

    name: str
    heads: int
    kv_heads: int
    head_size: int


GEOMETRIES = {
    geometry.name: geometry
    for geometry in (
        Geometry("Llama-3.2-1B", 32, 8, 64),
        Geometry("Qwen2.5-0.5B", 14, 2, 64),
        Geometry("BitNet-2B", 20, 5, 128),
        Geometry("Phi-3-mini", 32, 32, 96),
    )
}
