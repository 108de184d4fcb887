"""What a rewrite did: the counts and reasons that the command line prints and `--json` returns."""

from __future__ import annotations

import dataclasses
from typing import Any

from deltallm_onnx.passes.site import Declined


@dataclasses.dataclass(frozen=True)
class RewriteReport:
    """Outcome of `rewrite_model`.

    Attributes:
        layers: attention layers found.
        rewritten: how many of them are DeltaAttention now.
        declined: the others, with the reasons; not empty only with `allow_partial`.
        removed_nodes: nodes that only served the old masks and layouts.
        lines: one line per pass, in order, as printed.
    """

    layers: int
    rewritten: int
    declined: tuple[Declined, ...]
    removed_nodes: int
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return dataclasses.asdict(self)
