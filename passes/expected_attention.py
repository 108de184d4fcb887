"""What the source of a model says of its attention, held against what its graph computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes.site import AttentionSite

#: Forms whose exporters have been seen to drop parts of the attention.
_DECOMPOSED = ("Softmax", "Attention without past")
_ROUNDING = 1e-6
_DROPPED = "none: the exporter dropped it, as SDPA does"


@dataclasses.dataclass(frozen=True)
class ExpectedAttention:
    """What a model's configuration says.

    Attributes:
        where: the file it was read from.
        softcap: of the attention scores; None where the file does not say.
        windows: the sliding window of each layer, None for none; None where the file does not say.
    """

    where: str
    softcap: float | None
    windows: tuple[int | None, ...] | None


def compare_with_source(sites: Sequence[AttentionSite], expected: ExpectedAttention) -> list[str]:
    """Hold decomposed layers against the configuration.

    Returns:
        One line for layers whose window differs: they are rewritten as their graph computes them.

    Raises:
        DeltaLLMError: where the exporter dropped the softcap, so that the graph is no longer the model.
    """
    decomposed = [site for site in sites if site.form in _DECOMPOSED]
    if expected.softcap is not None:
        for site in decomposed:
            _refuse_other_softcap(site, expected.where, expected.softcap)
    return [_different_window(site, expected.where, window) for site, window in _windows(decomposed, expected)]


def _refuse_other_softcap(site: AttentionSite, where: str, softcap: float) -> None:
    if abs(site.softcap - softcap) > _ROUNDING * softcap:
        found = f"one of {site.softcap:g}: the exporter changed it" if site.softcap else _DROPPED
        raise DeltaLLMError(
            f"{where} gives the attention a softcap of {softcap:g} and layer {site.layer} of the graph has {found}; "
            'convert the Hugging Face model itself, or export it with attn_implementation="eager".'
        )


def _windows(sites: Sequence[AttentionSite], expected: ExpectedAttention) -> list[tuple[AttentionSite, int | None]]:
    """The sites whose window is another than expected, with the expected one."""
    windows = expected.windows or ()
    pairs = ((site, windows[site.layer]) for site in sites if site.layer < len(windows))
    return [(site, window) for site, window in pairs if site.mask.sliding_window != window]


def _different_window(site: AttentionSite, where: str, window: int | None) -> str:
    found, meant = (
        "no sliding window" if size is None else f"a sliding window of {size}"
        for size in (site.mask.sliding_window, window)
    )
    return f"layer {site.layer} has {found} in the graph and {meant} in {where}: rewritten as the graph computes it"
