"""The form of the exported graph: what the interface promises, and what must not be in the file."""

import collections
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from support import tiny_models

from deltallm_onnx import WeightFormat
from deltallm_onnx.export import api, export_model


def load(path: Path) -> ir.Model:
    return ir.load(path)


def shape_of(value: ir.Value) -> list[int | str]:
    return [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape]


def test_interface(exports: Path) -> None:
    path = tiny_models.exported("gemma2", exports)  # 3 layers, 6 heads, 2 KV heads, head size 10, vocabulary 83
    model = load(path)
    assert model.opset_imports == {"": 23}
    assert not model.functions
    cache_in = ["batch", 2, "past_sequence_length", 10]
    cache_out = ["batch", 2, "total_sequence_length", 10]
    inputs = {value.name: (value.dtype, shape_of(value)) for value in model.graph.inputs}
    outputs = {value.name: (value.dtype, shape_of(value)) for value in model.graph.outputs}
    parts = [(layer, part) for layer in range(3) for part in ("key", "value")]
    assert inputs == {
        "input_ids": (ir.DataType.INT64, ["batch", "sequence_length"]),
        "attention_mask": (ir.DataType.INT64, ["batch", "total_sequence_length"]),
        "position_ids": (ir.DataType.INT64, ["batch", "sequence_length"]),
        **{f"past_key_values.{i}.{part}": (ir.DataType.FLOAT, cache_in) for i, part in parts},
    }
    assert list(inputs)[:5] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert outputs == {
        "logits": (ir.DataType.FLOAT, ["batch", "sequence_length", 83]),
        **{f"present.{i}.{part}": (ir.DataType.FLOAT, cache_out) for i, part in parts},
    }
    onnx.checker.check_model(path, full_check=True)


def test_attention_nodes(exports: Path) -> None:
    model = load(tiny_models.exported("gemma2", exports))
    nodes = [node for node in model.graph if node.op_type == "Attention"]
    assert [node.name for node in nodes] == [f"/model/layers.{i}/self_attn/Attention" for i in range(3)]
    for i, node in enumerate(nodes):
        assert node.domain == ""
        assert [value.name for value in node.inputs[4:]] == [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        assert [value.name for value in node.outputs[1:]] == [f"present.{i}.key", f"present.{i}.value"]
        assert shape_of(node.inputs[0]) == ["batch", 6, "sequence_length", 10]
        assert node.attributes["scale"].as_float() == pytest.approx(12**-0.5)
        assert node.attributes["softcap"].as_float() == 2.0
        assert node.attributes["is_causal"].as_int() == 0
    masks = [node.inputs[3] for node in nodes]
    assert masks[0] is masks[2]  # sliding layers share one
    assert masks[1] is not masks[0]
    assert all(mask.dtype == ir.DataType.BOOL for mask in masks)
    assert shape_of(masks[0]) == ["batch", 1, "sequence_length", "total_sequence_length"]


def spell(value: ir.Value | None) -> object:
    """A value as a nested tuple (operator, attributes, inputs…), constants and graph inputs as leaves."""
    assert value is not None
    node = value.producer()
    if node is None:
        return value.name if value.is_graph_input() else value.const_value.numpy().tolist()
    # what the optimiser fills in as default says nothing
    attributes = {k: a.value for k, a in node.attributes.items() if k != "saturate"}
    return (node.op_type, tuple(sorted(attributes.items())), *map(spell, node.inputs))


def test_mask_subgraph_is_the_one_the_matcher_proves(exports: Path) -> None:
    model = load(tiny_models.exported("gemma2", exports))
    sliding, full = (node.inputs[3] for node in list(model.graph) if node.name and node.name.endswith(
        ("layers.0/self_attn/Attention", "layers.1/self_attn/Attention")))  # fmt: skip

    def length(name: str) -> tuple[object, ...]:
        return ("Squeeze", (), ("Shape", (("end", 2), ("start", 1)), name))

    S, T = length("input_ids"), length("attention_mask")
    kv = ("Unsqueeze", (), ("Range", (), 0, T, 1), [0])
    query = ("Unsqueeze", (), ("Add", (), ("Range", (), 0, S, 1), ("Sub", (), T, S)), [1])
    causal = ("LessOrEqual", (), kv, query)
    inside = ("Greater", (), kv, ("Sub", (), query, 7))
    padding = ("Unsqueeze", (), ("Cast", (("to", 9),), "attention_mask"), [1, 2])
    assert spell(full) == ("And", (), causal, padding)
    assert spell(sliding) == ("And", (), ("And", (), causal, inside), padding)


def test_weights_are_stored_once_transposed_and_outside_the_graph(exports: Path) -> None:
    path = tiny_models.exported("llama", exports)
    model = load(path)
    counts = collections.Counter(node.op_type for node in model.graph)
    assert counts["RMSNormalization"] == 5
    assert counts["RotaryEmbedding"] == 4
    q_proj = model.graph.initializers["model.layers.1.self_attn.q_proj.weight_transposed"]
    assert shape_of(q_proj) == [48, 60]
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    parameters = 83 * 48 * 2 + 2 * (48 * (60 + 20 + 20) + 60 * 48 + 3 * 48 * 97 + 2 * 48) + 48
    assert 4 * parameters <= stored < 4 * parameters + 1000  # and little else: constants, inv_freq
    assert path.with_name("dense.onnx.data").stat().st_size > 0.99 * stored
    assert path.stat().st_size < 60_000


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    config = tiny_models.ARCHITECTURES["llama"]()
    config.tie_word_embeddings = True
    tiny_models.save_config(config, tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "tied.onnx")
    model = load(tmp_path / "tied.onnx")
    vocabulary = [value for value in model.graph.initializers.values() if 83 in shape_of(value)]
    assert [shape_of(value) for value in vocabulary] == [[83, 48]]
    assert sorted(node.op_type for node, _ in vocabulary[0].uses()) == ["Gather", "Transpose"]


def test_no_trace_of_this_machine(exports: Path) -> None:
    path = tiny_models.exported("llama", exports)
    content = path.read_bytes()
    for leak in (b"/site-packages/", b"pkg.torch", b"torch", b".py", str(Path(__file__).parents[2]).encode()):
        assert leak not in content, leak
    proto = onnx.load(path, load_external_data=False)
    assert not proto.metadata_props
    assert not proto.graph.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert proto.producer_name == "deltallm-onnx"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_names_say_where_a_node_comes_from(name: str, exports: Path) -> None:
    model = load(tiny_models.exported(name, exports))
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names)
    assert all(str(name).startswith("/") for name in names)
    values = [value.name for node in model.graph for value in node.outputs] + list(model.graph.initializers)
    assert len(set(values)) == len(values)
    assert not [value for value in values if str(value).startswith("val_")]


def test_exporting_twice_gives_the_same_bytes(exports: Path, tmp_path: Path) -> None:
    first = tiny_models.exported("gemma2", exports)
    export_model(first.parent / "model", tmp_path / "dense.onnx")
    for name in ("dense.onnx", "dense.onnx.data", "genai_config.json"):
        assert (tmp_path / name).read_bytes() == first.with_name(name).read_bytes(), name


def test_the_model_before_its_weights_are_stored_is_the_float_one(exports: Path, tmp_path: Path) -> None:
    dense = tiny_models.exported("llama", exports)
    made, before = tmp_path / "small.onnx", tmp_path / "before" / "dense.onnx"
    before.parent.mkdir()
    export_model(dense.parent / "model", made, weights=WeightFormat("int4"), before=before)
    assert "MatMulNBits" in {node.op_type for node in load(made).graph}
    for name in ("dense.onnx", "dense.onnx.data"):
        assert before.with_name(name).read_bytes() == dense.with_name(name).read_bytes(), name


@pytest.mark.parametrize(
    ("size", "free", "room"),
    [(10**6, 10**8, True), (10**6, 65 * 10**6, False), (10**9, 2 * 10**9, False), (5 << 30, 1 << 40, False)],
    ids=["both fit", "little is left", "the model itself fits alone", "larger than is worth it"],
)
def test_a_copy_to_compare_with_takes_no_room_that_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, free: int, room: bool
) -> None:
    monkeypatch.setattr(api, "free_disk", lambda _: free)
    assert api._has_room_beside(tmp_path, size) == room
