"""What the layers of a model must have in common before any of them is rewritten."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.passes import naming
from deltallm_onnx.passes.site import AttentionSite, Declined

_TOKEN_AXIS = 2
#: How many cache inputs a message lists before it counts the rest.
_LISTED = 3


def refuse_mixed_forms(found: Sequence[AttentionSite | Declined]) -> None:
    """Refuse a model that writes its attention in several ways: no exporter does, so something else edited it.

    Raises:
        DeltaLLMError: saying which layers are written how.
    """
    forms: dict[str, list[int]] = {}
    for entry in found:
        forms.setdefault(entry.form, []).append(entry.layer)
    if len(forms) > 1:
        listed = " and ".join(f"{_layers(layers)} {form}" for form, layers in forms.items())
        raise DeltaLLMError(f"The model mixes forms of attention ({listed}): export it with one form for all layers.")


def refuse_shared_caches(sites: Sequence[AttentionSite]) -> None:
    """Refuse layers of which each would write the other's cache.

    Raises:
        DeltaLLMError: naming the cache and both layers.
    """
    owners: dict[ir.Value, int] = {}
    for site in sites:
        for cache in (site.past_key, site.past_value, site.present_key, site.present_value):
            if cache in owners:
                raise DeltaLLMError(
                    f"{cache.name!r} is a cache of layer {owners[cache]} and once more of layer {site.layer}: convert "
                    "the model from its Hugging Face directory."
                )
            owners[cache] = site.layer


def unread_caches(model: ir.Model, sites: Sequence[AttentionSite]) -> list[str]:
    """Names of the graph inputs that look like key/value caches and belong to no site."""
    used = {value for site in sites for value in (site.past_key, site.past_value)}
    return [value.name or "" for value in model.graph.inputs if value not in used and _is_cache(value)]


def refuse_unread_caches(model: ir.Model, sites: Sequence[AttentionSite]) -> None:
    """Refuse a model with an attention that was not even recognised as one.

    Raises:
        DeltaLLMError: naming the caches that are left over.
    """
    left = unread_caches(model, sites)
    if left:
        more = f" and {len(left) - _LISTED} more" if len(left) > _LISTED else ""
        names = ", ".join(repr(name) for name in left[:_LISTED])
        raise DeltaLLMError(
            f"The cache inputs {names}{more} are read by no attention that was found: convert the model from its "
            "Hugging Face directory, or leave those layers dense with allow_partial (--allow-partial)."
        )


def refuse_cache_lengths(model: ir.Model) -> None:
    """Refuse a graph that still asks a cache how long it is.

    A cache may have rows to spare, and where there is a padding mask, that alone counts tokens.

    Raises:
        DeltaLLMError: naming the cache and who asks.
    """
    for node in naming.delta_nodes(model):
        if len(node.inputs) <= naming.ATTENTION_MASK or node.inputs[naming.ATTENTION_MASK] is None:
            continue
        past = node.inputs[naming.PAST_KEY : naming.PAST_VALUE + 1]
        present = node.outputs[naming.PRESENT_KEY : naming.PRESENT_VALUE + 1]
        for cache in (value for value in (*past, *present) if value is not None):
            for reader, _ in cache.uses():
                if reader.op_type == "Shape" and _TOKEN_AXIS in _axes_of(reader):
                    raise DeltaLLMError(
                        f"The graph asks the cache {cache.name!r} for its length at node {reader.name!r}, where the "
                        "attention mask cannot stand for it: convert the model from its Hugging Face directory."
                    )


def _axes_of(shape: ir.Node) -> range:
    """The axes whose lengths a Shape of a cache gives."""
    start, end = (shape.attributes[name].as_int() if name in shape.attributes else None for name in ("start", "end"))
    return range(4)[slice(start, end)]


def _layers(numbers: Sequence[int]) -> str:
    """Such as "layer 4 is" or "layers 0–3 and 5 are"."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    parts = [str(first) if first == last else f"{first}–{last}" for first, last in ranges]
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return f"layer {listed} is" if len(numbers) == 1 else f"layers {listed} are"


def _is_cache(value: ir.Value) -> bool:
    """Four axes of floats, and named like a past or grown into an output."""
    if value.shape is None or len(value.shape) != 4 or value.dtype is None or not value.dtype.is_floating_point():
        return False
    if value.is_initializer():
        return False
    grown = any(
        node.op_type == "Concat" and index == 0 and node.outputs[0].is_graph_output() for node, index in value.uses()
    )
    return grown or (value.name or "").startswith("past_key_values.")
