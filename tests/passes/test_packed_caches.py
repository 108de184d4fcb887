"""Rewriting to packed caches: types and shapes, no function bodies, and what is refused before anything changes."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from support.attention_models import HEAD_SIZE, KV_HEADS, GraphBuilder, attention_model, exporter_mask

from deltallm_onnx import DeltaConfig, DeltaLLMError
from deltallm_onnx.packed_sizes import bytes_per_token
from deltallm_onnx.passes import rewrite_model

INT8 = DeltaConfig(window=33, sinks=2, cache_format="int8", prefill_compute="bfloat16")
INT4 = INT8.replace(cache_format="int4")


def dense(**options: object) -> ir.Model:
    options = {"layers": 2, "layout": "projected", **options}
    return ir.serde.deserialize_model(attention_model(exporter_mask(6), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [INT8, INT4], ids=lambda config: config.cache_format)
def test_caches_become_bytes_and_keep_their_other_dimensions(config: DeltaConfig) -> None:
    before, model = dense(), dense()
    report = rewrite_model(model, config)
    caches = 0
    for old, new in zip(
        [*before.graph.inputs, *before.graph.outputs], [*model.graph.inputs, *model.graph.outputs], strict=True
    ):
        assert old.name is not None
        assert old.shape is not None
        if not old.name.startswith(("past_key_values", "present")):
            assert (old.name, old.dtype, old.shape) == (new.name, new.dtype, new.shape)
            continue
        caches += 1
        assert (old.name, new.dtype) == (new.name, ir.DataType.UINT8)
        last = bytes_per_token(config.cache_format, HEAD_SIZE)
        assert last != HEAD_SIZE
        assert new.shape == ir.Shape([*old.shape.dims[:3], last])
        assert old.shape[1] == KV_HEADS
    assert caches == 2 * 4
    assert not model.functions
    assert f"keys and values of 2 layers cached as {config.cache_format}" in report.lines
    assert any(line.startswith("no fallback function") for line in report.lines)
    assert DeltaConfig.from_json(model.metadata_props["deltallm.config"]) == config
    for node in model.graph:
        if node.op_type == "DeltaAttention":
            assert node.attributes["cache_format"].as_string() == config.cache_format
            assert node.attributes["prefill_compute"].as_string() == "bfloat16"


def refused(model: ir.Model, config: DeltaConfig, sentence: str, *, unfused: bool = False) -> None:
    before = ir.serde.serialize_model(model).SerializeToString()
    with pytest.raises(DeltaLLMError, match=sentence):
        rewrite_model(model, config, unfused=unfused)
    assert ir.serde.serialize_model(model).SerializeToString() == before


@pytest.mark.parametrize("config", [INT8, INT4], ids=lambda config: config.cache_format)
def test_unfused_is_refused(config: DeltaConfig) -> None:
    sentence = (
        f"cache_format {config.cache_format} has no form in standard operators: leave out --unfused, or choose "
        "float32 or float16"
    )
    refused(dense(), config, sentence, unfused=True)


def test_int4_without_a_mask_is_refused_and_int8_is_not() -> None:
    def unmasked(g: GraphBuilder) -> None:
        for node in g.nodes:
            if node.op_type == "Attention":
                node.input[3] = ""
                node.attribute.add(name="is_causal", i=1, type=2)

    refused(dense(changed=unmasked), INT4, "Layer 0 has neither an attention mask nor lengths per row")
    assert rewrite_model(dense(changed=unmasked), INT8).rewritten == 2
