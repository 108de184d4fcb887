"""The same .onnx file with other settings, in memory only.

`prefill` says what queries of a call with several tokens read (docs/spec.md section 3). A model written with "exact"
reads every new row exactly in such a call, so reading a text by one call would measure nothing. With "delta" the
outputs of one call are those of token-by-token decoding, and a whole window can be read at once. Function bodies in
the file are those of its own setting: the forms are for the operator library alone.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from deltallm_onnx.counters import COLUMNS
from deltallm_onnx.runtime.model import DecoderModel
from deltallm_onnx.runtime.signature import DOMAIN, STATISTICS

_FUSED = "DeltaAttention"
#: Operators with the attribute `prefill`.
_WITH_PREFILL = (_FUSED, "HybridWindowAttention")
#: Outputs of DeltaAttention.
_PRESENT_KEY, _STATISTICS = 1, 3


def delta_form(path: Path, *, threads: int | None = None) -> DecoderModel:
    """Open a model so that calls with several tokens read what decoding reads, and count.

    Every rewritten layer gets `prefill = "delta"`, `prefill_compute = "float32"` and a statistics output, whatever the
    file says; the file and its weights stay as they are. Outputs of one call equal those of token-by-token decoding of
    the file as it is, up to float reassociation (docs/spec.md section 3, "Consequences").

    Args:
        path: an .onnx file; of a dense one nothing is changed.
        threads: as in `DecoderModel`.

    Raises:
        DeltaLLMError: as `DecoderModel` does.
    """
    return DecoderModel(path, threads=threads, edit=read_as_decoding)


def read_as_decoding(model: onnx.ModelProto) -> None:
    """The changes of `delta_form`, in place."""
    hold_in_prompts(model)
    for node in _delta_nodes(model):
        if node.op_type == _FUSED:
            _set_attribute(node, "prefill_compute", "float32")


def hold_in_prompts(model: onnx.ModelProto) -> None:
    """Every rewritten layer gets `prefill = "delta"` and a statistics output, in place."""
    _set_prefill(model, "delta")


def read_prompts_exactly(model: onnx.ModelProto) -> None:
    """Every rewritten layer gets `prefill = "exact"` and a statistics output, in place."""
    _set_prefill(model, "exact")


def _set_prefill(model: onnx.ModelProto, prefill: str) -> None:
    for node in _delta_nodes(model):
        if node.op_type != _FUSED and _attribute(node, "prefill", "delta") != prefill:
            _drop_statistics(model)
        _set_attribute(node, "prefill", prefill)
    add_statistics(model)


def _drop_statistics(model: onnx.ModelProto) -> None:
    """Of an unfused model: standard operators count there, for the setting that the file was written with."""
    kept = [value for value in model.graph.output if not STATISTICS.fullmatch(value.name)]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def add_statistics(model: onnx.ModelProto) -> None:
    """Give every DeltaAttention node that has none an output `statistics.N`, in place; N is its layer."""
    taken = {value.name for value in model.graph.output}
    for node in _delta_nodes(model):
        if node.op_type != _FUSED or (len(node.output) > _STATISTICS and node.output[_STATISTICS]):
            continue
        del node.output[_STATISTICS:]
        layer = node.output[_PRESENT_KEY].removeprefix("present.").removesuffix(".key")
        # Where the present passes another node first, any number does: counts are summed over layers.
        numbers = itertools.chain([layer] if layer.isdecimal() else [], map(str, itertools.count()))
        name = next(name for number in numbers if (name := f"statistics.{number}") not in taken)
        taken.add(name)
        node.output.append(name)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, [None, COLUMNS]))


def prompt_settings(model: onnx.ModelProto) -> frozenset[tuple[str, str]]:
    """What the rewritten layers do with prompts: their distinct pairs of prefill and prefill_compute."""
    return frozenset(
        (_attribute(node, "prefill", "delta"), _attribute(node, "prefill_compute", "float32"))
        for node in _delta_nodes(model)
    )


def _delta_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in _WITH_PREFILL]


def _attribute(node: onnx.NodeProto, name: str, default: str) -> str:
    found = (attribute.s.decode("utf-8", "replace") for attribute in node.attribute if attribute.name == name)
    return next(found, default)


def _set_attribute(node: onnx.NodeProto, name: str, value: str) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.s = value.encode()
            return
    node.attribute.append(helper.make_attribute(name, value))
