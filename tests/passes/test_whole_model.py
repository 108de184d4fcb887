"""What is asked of a model as a whole, before and after its layers are rewritten."""

from __future__ import annotations

import dataclasses

import onnx
import onnx_ir as ir
import pytest
from support.softmax_models import Spelling, softmax_model

from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.passes import rewrite_model
from deltallm_onnx.passes.match import find_layers
from deltallm_onnx.passes.site import AttentionSite, Declined
from deltallm_onnx.passes.whole_model import refuse_cache_lengths, refuse_mixed_forms, refuse_shared_caches


def layers(**forms: str) -> list[Declined]:
    """Entries whose layer is in the name: layer0="Softmax"."""
    return [Declined(int(name.removeprefix("layer")), "node", "reason", form) for name, form in forms.items()]


def test_one_form_is_not_refused() -> None:
    refuse_mixed_forms(layers(layer0="Softmax", layer1="Softmax"))
    refuse_mixed_forms([])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (layers(layer0="A", layer1="A", layer2="A", layer3="A", layer4="B"), "layers 0–3 are A and layer 4 is B"),
        (
            layers(layer0="A", layer1="B", layer3="A", layer4="A", layer7="A"),
            "layers 0, 3–4 and 7 are A and layer 1 is B",
        ),
        (layers(layer1="A", layer0="B", layer2="C"), "layer 1 is A and layer 0 is B and layer 2 is C"),
    ],
)
def test_mixed_forms_are_refused_by_their_layers(found: list[Declined], words: str) -> None:
    with pytest.raises(DeltaLLMError) as refusal:
        refuse_mixed_forms(found)
    assert words in str(refusal.value)


@pytest.mark.parametrize("cache", ["past_key", "past_value", "present_key", "present_value"])
def test_a_cache_belongs_to_one_layer(cache: str) -> None:
    model = onnx.shape_inference.infer_shapes(softmax_model(Spelling(layers=3)))
    sites = [site for site in find_layers(ir.serde.deserialize_model(model)) if isinstance(site, AttentionSite)]
    assert len(sites) == 3
    refuse_shared_caches(sites)
    name = getattr(sites[0], cache).name
    sites[2] = dataclasses.replace(sites[2], **{cache: getattr(sites[0], cache)})
    with pytest.raises(DeltaLLMError, match=f"'{name}' is a cache of layer 0 and once more of layer 2"):
        refuse_shared_caches(sites)


@pytest.mark.parametrize(("cache", "output"), [("past_key_values.0.value", False), ("present.0.key", True)])
@pytest.mark.parametrize(("axes", "is_length"), [({}, True), ({"start": 2, "end": 3}, True), ({"end": 2}, False)])
def test_nobody_may_ask_a_cache_for_its_length(
    cache: str, axes: dict[str, int], *, output: bool, is_length: bool
) -> None:
    model = ir.serde.deserialize_model(softmax_model(Spelling()))
    rewrite_model(model, profile("exact"))
    refuse_cache_lengths(model)
    values = model.graph.outputs if output else model.graph.inputs
    model.graph.append(ir.node("Shape", [next(value for value in values if value.name == cache)], axes, name="asks"))
    if is_length:
        with pytest.raises(DeltaLLMError, match=f"asks the cache '{cache}' for its length at node 'asks'"):
            refuse_cache_lengths(model)
    else:
        refuse_cache_lengths(model)
