"""What genai_config.json says of layers and caches, held against the graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.packed_sizes import CHANNEL_GROUP, PACKED_FORMATS, padded_head_size
from deltallm_onnx.passes import naming


def check_geometry(path: Path, decoder: dict[str, Any], model: ir.Model, cache_format: str) -> None:
    """Refuse a configuration of another model than the one beside it.

    Where layers differ, the configuration describes one of them. What it leaves out is not compared.

    Args:
        path: the genai_config.json.
        decoder: its section model.decoder.
        model: rewritten.
        cache_format: of its caches.

    Raises:
        DeltaLLMError: for a number that no layer of the graph has, naming both.
    """
    nodes = naming.delta_nodes(model)
    _compare(path, decoder, "num_hidden_layers", _layers(decoder, model))
    _compare(path, decoder, "num_key_value_heads", {node.attributes["kv_num_heads"].as_int() for node in nodes})
    sizes = {size for node in nodes if (size := _head_size(node, cache_format))}
    # Packed rows have whole groups of channels.
    _compare(path, decoder, "head_size", sizes, group=CHANNEL_GROUP if cache_format in PACKED_FORMATS else 1)


def _compare(path: Path, decoder: dict[str, Any], field: str, found: set[int], group: int = 1) -> None:
    said = decoder.get(field)
    if isinstance(said, int) and found and -(-said // group) * group not in found:
        numbers = " or ".join(map(str, sorted(found)))
        raise DeltaLLMError(
            f"{path} says model.decoder.{field} is {said}, and in the graph it is {numbers}: correct it, or take the "
            "file that the model came with."
        )


def _layers(decoder: dict[str, Any], model: ir.Model) -> set[int]:
    """One more than the last layer that any state of the graph belongs to, convolutions' included; none if none has."""
    inputs = decoder.get("inputs")
    templates = [name for name in (inputs if isinstance(inputs, dict) else {}).values() if isinstance(name, str)]
    patterns = [re.compile(re.escape(name).replace("%d", r"(\d+)")) for name in templates if name.count("%d") == 1]
    matches = [pattern.fullmatch(value.name or "") for value in model.graph.inputs for pattern in patterns]
    indices = [int(match.group(1)) for match in matches if match]
    return {max(indices) + 1} if indices else set()


def _head_size(node: ir.Node, cache_format: str) -> int | None:
    """Channels of a stored key; None where the graph has a name for them."""
    past = node.inputs[naming.PAST_KEY]
    size = None if past is None or past.shape is None else past.shape[3]
    if not isinstance(size, int):
        return None
    return padded_head_size(cache_format, size) if cache_format in PACKED_FORMATS else size
