"""What is inside an .onnx or .ort file: its attention sites, their settings and its caches, without loading weights."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from deltallm_onnx.config import Granularity
from deltallm_onnx.dense_model import open_dense_model, quiet
from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.hold_rules import rule_name
from deltallm_onnx.packed_sizes import PACKED_FORMATS, bytes_per_row
from deltallm_onnx.passes.match import find_layers, infer_missing_shapes
from deltallm_onnx.passes.site import AttentionSite, Declined
from deltallm_onnx.runtime.library import ops_library_path
from deltallm_onnx.runtime.model_file import ORT_SUFFIX
from deltallm_onnx.runtime.ort_file import read_graph

_DOMAIN = "ai.deltallm"

# Operator → names of its head-count attributes and the position of its past key.
_ATTENTION: dict[tuple[str, str], tuple[str, str, int]] = {
    ("", "Attention"): ("q_num_heads", "kv_num_heads", 4),
    ("com.microsoft", "GroupQueryAttention"): ("num_heads", "kv_num_heads", 3),
    ("com.microsoft", "MultiHeadAttention"): ("num_heads", "num_heads", 6),
    (_DOMAIN, "DeltaAttention"): ("num_heads", "kv_num_heads", 3),
    (_DOMAIN, "HybridWindowAttention"): ("num_heads", "kv_num_heads", -1),
}
_THRESHOLD_INPUT, _ROW_WEIGHT_INPUT = 16, 17
#: Forms of attention that are several nodes, as `passes.match` names them, with what stands for them.
_DECOMPOSED = {"Softmax": "ai.onnx::Softmax", "Attention without past": "ai.onnx::Attention"}
_PAST_KEY_INPUT = 4


@dataclasses.dataclass(frozen=True)
class AttentionSiteInfo:
    """One attention node.

    Attributes:
        layer: index of the layer: from the name of its cache, else the position among the sites.
        node: the node's name.
        op: domain and operator type.
        num_heads: Hq; None where the file does not say.
        kv_num_heads: Hkv; None where the file does not say.
        head_size: D in channels; None where the file does not say.
        threshold: smallest and largest θ; None for dense attention and where they cannot be read.
        settings: the node's other attributes; of decomposed attention what they would be, or why it is not understood.
        row_weight: whether the norms of rows have channel weights.
        rule: by which keys are held, as `calibrate --rule` calls it; None for dense attention and where the node does
            not say.
    """

    layer: int
    node: str
    op: str
    num_heads: int | None
    kv_num_heads: int | None
    head_size: int | None
    threshold: tuple[float, float] | None
    settings: dict[str, Any]
    row_weight: bool = False
    rule: str | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found.

    Attributes:
        path: the file.
        opset: version of each operator set, "" being the standard one.
        sites: every attention node, in graph order.
        cache_bytes_per_token: bytes that one token takes in all caches of the file, in sealed blocks if they are int4;
            0 without caches.
        cache_bytes_per_row: bytes that one token of int4 caches takes outside sealed blocks: in the sinks, in the
            window and while it waits for a block; of other caches the same.
        metadata: the file's `deltallm.*` entries; deltallm.config and deltallm.plan parsed.
        needs_library: operators that only the compiled library can run.
        has_fallback: whether the file carries function bodies of `ai.deltallm` operators.
        library: path of the operator library, if there is one on this machine.
        library_problem: why there is none.
        ort_form: of a rewritten .ort: "operator", where it calls the library's kernels, or "fallback", where delta
            attention is written out in standard operators and no site is left to see.
    """

    path: str
    opset: dict[str, int]
    sites: tuple[AttentionSiteInfo, ...]
    cache_bytes_per_token: int
    cache_bytes_per_row: int
    metadata: dict[str, Any]
    needs_library: tuple[str, ...]
    has_fallback: bool
    library: str | None
    library_problem: str | None
    ort_form: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return dataclasses.asdict(self)


def inspect_model(path: Path) -> Inspection:
    """Describe an .onnx or .ort file, dense or rewritten.

    Raises:
        DeltaLLMError: where it is not a readable model (`read_graph`).
    """
    model = read_graph(path)
    library, problem = None, None
    try:
        library = str(ops_library_path())
    except DeltaLLMError as error:
        problem = str(error)
    bodies = {function.name for function in model.functions if function.domain == _DOMAIN}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    per_token, per_row = _cache_bytes(model)
    return Inspection(
        path=str(path),
        opset={entry.domain: entry.version for entry in model.opset_import},
        sites=_all_sites(path, model),
        cache_bytes_per_token=per_token,
        cache_bytes_per_row=per_row,
        metadata=_metadata(model),
        needs_library=tuple(sorted({node.op_type for node in nodes if node.domain == _DOMAIN} - bodies)),
        has_fallback=bool(bodies),
        library=library,
        library_problem=problem,
        ort_form=_ort_form(path, model),
    )


def _ort_form(path: Path, model: onnx.ModelProto) -> str | None:
    if path.suffix != ORT_SUFFIX or not any(entry.key == "deltallm.config" for entry in model.metadata_props):
        return None
    return "operator" if any(node.domain == _DOMAIN for node in model.graph.node) else "fallback"


def _all_sites(path: Path, model: onnx.ModelProto) -> tuple[AttentionSiteInfo, ...]:
    """Operators as they stand in the file, and decomposed attention as the matchers see it."""
    # The matchers know what exporters write, not what ONNX Runtime's optimizations leave of it in an .ort.
    if path.suffix == ORT_SUFFIX or not any(_may_be_decomposed(node) for node in model.graph.node):
        return _sites(path, model, frozenset())
    dense = open_dense_model(path)
    with quiet():
        infer_missing_shapes(dense.model)
        found = [entry for entry in find_layers(dense.model) if entry.form in _DECOMPOSED]
    matched = [_matched(entry) for entry in found]
    operators = _sites(path, model, frozenset(site.node for site in matched))
    return tuple(sorted((*operators, *matched), key=lambda site: site.layer))


def _may_be_decomposed(node: onnx.NodeProto) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    has_past = len(node.input) > _PAST_KEY_INPUT and bool(node.input[_PAST_KEY_INPUT])
    return node.op_type == "Softmax" or (node.op_type == "Attention" and not has_past)


def _matched(entry: AttentionSite | Declined) -> AttentionSiteInfo:
    op = _DECOMPOSED[entry.form]
    if isinstance(entry, Declined):
        settings: dict[str, Any] = {"declined": entry.reason}
        return AttentionSiteInfo(entry.layer, entry.node, op, None, None, None, None, settings)
    window = -1 if entry.mask.sliding_window is None else entry.mask.sliding_window
    settings = {"scale": entry.scale, "softcap": entry.softcap, "local_window_size": window}
    heads = entry.num_heads, entry.kv_num_heads, entry.head_size
    return AttentionSiteInfo(entry.layer, entry.node.name or "", op, *heads, None, settings)


def _sites(path: Path, model: onnx.ModelProto, elsewhere: frozenset[str]) -> tuple[AttentionSiteInfo, ...]:
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    sites: list[AttentionSiteInfo] = []
    for node in model.graph.node:
        if node.name in elsewhere:
            continue
        key = ("" if node.domain == "ai.onnx" else node.domain, node.op_type)
        if key not in _ATTENTION:
            continue
        query_heads_name, kv_heads_name, past = _ATTENTION[key]
        settings = {a.name: _plain(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        past_name = node.input[past] if 0 <= past < len(node.input) else ""
        cache = shapes.get(past_name, [])
        query = shapes.get(node.input[0], []) if node.input else []
        kv_heads = settings.pop(kv_heads_name, None) or (cache[1] if len(cache) == 4 else None)
        # A four-axis query [B, Hq, S, D] needs no head count in the node.
        heads = settings.pop(query_heads_name, None) or (query[1] if len(query) == 4 else None)
        head_size = cache[3] if len(cache) == 4 else (query[3] if len(query) == 4 else None)
        if not head_size and heads and len(output := shapes.get(node.output[0], [])) == 3:
            head_size = output[2] // heads  # onnxruntime-genai gives that dimension of the cache a name
        if settings.get("cache_format") in PACKED_FORMATS:
            # The cache's last dimension counts bytes; a flat query has all heads side by side.
            packed_heads = (heads or 0) + (0 if node.input[1] else 2 * (kv_heads or 0))
            head_size = query[2] // packed_heads if len(query) == 3 and packed_heads else None
        theta = _table(node, _THRESHOLD_INPUT, initializers, path.resolve().parent)
        weights = _table(node, _ROW_WEIGHT_INPUT, initializers, path.resolve().parent)
        weighted = key[0] == _DOMAIN and any(node.input[_ROW_WEIGHT_INPUT : _ROW_WEIGHT_INPUT + 1])
        sites.append(
            AttentionSiteInfo(
                layer=_layer(past_name, len(sites)),
                node=node.name,
                op=f"{key[0] or 'ai.onnx'}::{key[1]}",
                num_heads=heads or None,
                kv_num_heads=kv_heads or None,
                head_size=head_size or None,
                threshold=None if theta is None else (float(theta.min()), float(theta.max())),
                settings=settings,
                row_weight=weighted,
                rule=None if theta is None else _rule(settings, theta, weighted=weighted and not _is_one(weights)),
            )
        )
    return tuple(sites)


def _layer(past_name: str, position: int) -> int:
    found = re.search(r"\.(\d+)\.", past_name)
    return int(found.group(1)) if found else position


def _table(
    node: onnx.NodeProto, index: int, initializers: dict[str, onnx.TensorProto], folder: Path
) -> npt.NDArray[Any] | None:
    """An input of a node of ours that holds numbers per head or channel; None where there is none to read."""
    if node.domain != _DOMAIN or len(node.input) <= index:
        return None
    tensor = initializers.get(node.input[index])
    if tensor is None:
        return None
    try:
        # One number per channel is large enough to lie in the data file, whose place `read_model_file` has checked.
        values = numpy_helper.to_array(tensor, str(folder))
    except (OSError, TypeError, ValueError, onnx.checker.ValidationError):
        return None  # of another size than its shape says; running the model is refused, describing it need not be
    return values if values.size else None


def _is_one(weights: npt.NDArray[Any] | None) -> bool:
    """Whether weights change nothing: float caches share one function, and layers without weights then have these."""
    return weights is not None and bool((weights == 1).all())


def _rule(settings: dict[str, Any], theta: npt.NDArray[Any], *, weighted: bool) -> str | None:
    granularity = settings.get("granularity")
    if granularity not in get_args(Granularity):
        return None
    per_channel = theta.ndim > 1 and bool((theta != theta[..., :1]).any())
    row_rule = str(settings.get("row_rule", "relative"))
    return rule_name(str(granularity), row_rule, weighted=weighted, per_channel=per_channel)


def _cache_bytes(model: onnx.ModelProto) -> tuple[int, int]:
    """Bytes of one token in all caches: by their last dimension, and outside sealed blocks."""
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (_DOMAIN, "DeltaAttention")]
    past = _ATTENTION[_DOMAIN, "DeltaAttention"][2]
    formats = {name: _cache_format(node) for node in nodes for name in node.input[past : past + 2]}
    per_token = per_row = 0
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        if value.name.startswith("past_key_values.") and len(dims) == 4:
            size = dims[1] * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize
            per_token += size * dims[3]
            per_row += size * bytes_per_row(formats.get(value.name, ""), dims[3])
    return per_token, per_row


def _cache_format(node: onnx.NodeProto) -> str:
    found = next((attribute.s for attribute in node.attribute if attribute.name == "cache_format"), b"")
    return found.decode("utf-8", "replace")


def _metadata(model: onnx.ModelProto) -> dict[str, Any]:
    entries: dict[str, Any] = {e.key: e.value for e in model.metadata_props if e.key.startswith("deltallm.")}
    # Absent in a dense model; shown as it is where it is not JSON.
    for key in ("deltallm.config", "deltallm.plan"):
        with contextlib.suppress(KeyError, ValueError):
            entries[key] = json.loads(entries[key])
    return entries


def _plain(value: Any) -> Any:
    """An attribute's value as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return value
    return type(value).__name__
