"""Folders of onnxruntime-genai: what a rewrite changes in them, what it leaves, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import AttributeProto, TensorProto
from support.attention_models import GraphBuilder, runner
from support.genai_folders import CONTEXT, genai_config, read_config, write_genai_folder
from support.grouped_query_models import HEAD_SIZE, KV_HEADS, grouped_query_feeds

import deltallm_onnx
from deltallm_onnx import DeltaLLMError, profile
from deltallm_onnx.byte_text import byte_text
from deltallm_onnx.inspect import inspect_model
from deltallm_onnx.packed_sizes import PackedSizes, bytes_per_token
from deltallm_onnx.runtime import ops_library_path

CONFIG = profile("exact").replace(window=8, sinks=1)
LIBRARY = ops_library_path().name


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def pasts(folder: Path) -> list[list[int | str]]:
    """The shapes of all caches, numbers and names."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    values = [v for v in (*model.graph.input, *model.graph.output) if v.name.startswith(("past", "present"))]
    return [[d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim] for value in values]


def expected_config(**decoder: Any) -> dict[str, Any]:
    """What a float model's configuration becomes."""
    config = genai_config(**decoder)
    config["model"]["decoder"]["session_options"]["custom_ops_library"] = LIBRARY
    config["search"]["past_present_share_buffer"] = True
    return config


@pytest.mark.parametrize("cache_format", ["float32", "float16", "int8", "int4"])
def test_what_changes_and_what_stays(tmp_path: Path, cache_format: str) -> None:
    source, out = write_genai_folder(tmp_path / "in"), tmp_path / "out"
    report = deltallm_onnx.rewrite(source, out, CONFIG.replace(cache_format=cache_format))
    config = expected_config()
    if cache_format in ("int8", "int4"):
        config["model"]["decoder"]["head_size"] = bytes_per_token(cache_format, HEAD_SIZE)
    assert read_config(out) == config
    assert list(read_config(out)["model"]) == list(config["model"]), "keys keep their order"
    assert listing(out) == ["genai_config.json", LIBRARY, "model.onnx", "model.onnx.data", "tokenizer.json"]
    assert sorted(file.name for file in report.files) == listing(out)
    assert (out / LIBRARY).read_bytes() == ops_library_path().read_bytes()
    assert not (out / LIBRARY).is_symlink()
    assert os.access(out / LIBRARY, os.X_OK)
    assert sum(LIBRARY in note and "--no-copy-library" in note for note in report.notes) == 1
    graph = ir.load(out / "model.onnx").graph
    assert not [value.name for value in graph.outputs if (value.name or "").startswith("statistics")]


def test_float_caches_compute_what_they_did(tmp_path: Path) -> None:
    source, out = write_genai_folder(tmp_path / "in"), tmp_path / "out"
    deltallm_onnx.rewrite(source, out, CONFIG)
    dense, delta = onnx.load(source / "model.onnx"), onnx.load(out / "model.onnx")
    for value in dense.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[3].dim_value = HEAD_SIZE
    feeds = grouped_query_feeds(dense, [13, 13], 1, prompt=False, seed=5)
    expected, actual = runner(dense)(feeds), runner(delta)(feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=1e-5, rtol=0, err_msg=name)


def test_caches_have_the_shape_that_is_to_be_allocated(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    for cache_format, last in (("float16", HEAD_SIZE), ("int8", HEAD_SIZE + 4)):
        deltallm_onnx.rewrite(source, tmp_path / cache_format, CONFIG.replace(cache_format=cache_format))
        for _, heads, rows, size in pasts(tmp_path / cache_format):
            assert (heads, size) == (KV_HEADS, last)
            assert isinstance(rows, str), "these grow with the text"


@pytest.mark.parametrize("context", [None, 30, 1000])
def test_int4_caches_have_the_rows_of_the_longest_text(tmp_path: Path, context: int | None) -> None:
    source, out = write_genai_folder(tmp_path / "in"), tmp_path / "out"
    report = deltallm_onnx.rewrite(source, out, CONFIG.replace(cache_format="int4"), context=context)
    tokens = min(context or CONTEXT, CONTEXT)
    sizes = PackedSizes("int4", HEAD_SIZE, CONFIG.sinks, CONFIG.window)
    rows = sizes.rows_needed(tokens)
    assert rows > tokens
    for shape in pasts(out):
        assert shape[1:] == [KV_HEADS, rows, sizes.bytes_per_token]
    # A runtime that allows longer texts than there is room for would fail in the middle of one.
    assert read_config(out)["model"]["context_length"] == tokens
    assert read_config(out)["search"]["max_length"] == tokens
    size = byte_text(2 * 2 * KV_HEADS * rows * sizes.bytes_per_token)
    assert any(f"{rows} rows for {tokens} tokens, {size} per sequence" in note for note in report.notes)


def test_int4_caches_without_a_context_length(tmp_path: Path) -> None:
    config = copy.deepcopy(genai_config())
    config["model"].pop("context_length")
    source = write_genai_folder(tmp_path / "in", config)
    with pytest.raises(DeltaLLMError, match=r"has no model\.context_length, and onnxruntime-genai allocates int4"):
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG.replace(cache_format="int4"))
    assert not (tmp_path / "out").exists()
    deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG.replace(cache_format="int4"), context=30)
    assert read_config(tmp_path / "out")["model"]["context_length"] == 30


def test_inspect_finds_the_head_size_behind_a_named_dimension(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    past = next(value for value in ir.load(source / "model.onnx").graph.inputs if "past" in str(value.name))
    assert past.shape is not None
    assert not isinstance(past.shape[3], int)
    assert {site.head_size for site in inspect_model(source / "model.onnx").sites} == {HEAD_SIZE}


def test_statistics_are_there_when_asked_for(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG, statistics=True)
    names = [value.name for value in ir.load(tmp_path / "out" / "model.onnx").graph.outputs]
    assert names[-2:] == ["statistics.0", "statistics.1"]


@pytest.mark.parametrize(("cache_format", "words"), [("float32", "slow fallback"), ("int8", "cannot run the model")])
def test_a_folder_for_another_machine(tmp_path: Path, cache_format: str, words: str) -> None:
    source, out = write_genai_folder(tmp_path / "in"), tmp_path / "out"
    report = deltallm_onnx.rewrite(source, out, CONFIG.replace(cache_format=cache_format), copy_library=False)
    assert LIBRARY not in listing(out)
    assert "custom_ops_library" not in read_config(out)["model"]["decoder"]["session_options"]
    assert read_config(out)["search"]["past_present_share_buffer"] is True
    assert any(words in note and "custom_ops_library" in note for note in report.notes)


def test_sliding_windows_are_removed_where_caches_become_whole(tmp_path: Path) -> None:
    window = {"window_size": 6, "slide_key_value_cache": False, "slide_inputs": False, "layers": [0, 1]}
    newer = {"kv_cache": {"sliding_window": window, "block_size": 16}}
    config = genai_config(sliding_window=window, cache=newer)
    source = write_genai_folder(tmp_path / "in", config, local_window_size=6, sliding_window_cache=1)
    report = deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert read_config(tmp_path / "out") == expected_config(cache={"kv_cache": {"block_size": 16}})
    assert any("sliding_window was removed" in note for note in report.notes)
    assert not any("no layer of the graph has one" in note for note in report.notes)


def test_options_that_are_not_there_are_made(tmp_path: Path) -> None:
    config = genai_config()
    del config["model"]["decoder"]["session_options"], config["search"]
    deltallm_onnx.rewrite(write_genai_folder(tmp_path / "in", config), tmp_path / "out", CONFIG)
    found = read_config(tmp_path / "out")
    assert found["model"]["decoder"]["session_options"] == {"custom_ops_library": LIBRARY}
    assert found["search"] == {"past_present_share_buffer": True}


def test_the_cpu_may_be_named(tmp_path: Path) -> None:
    options = {"provider_options": [{"cpu": {}}]}
    source = write_genai_folder(tmp_path / "in", genai_config(session_options=options))
    deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    found = read_config(tmp_path / "out")["model"]["decoder"]["session_options"]
    assert found == {**options, "custom_ops_library": LIBRARY}


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        section = config
        for name in path[:-1]:
            section = section[name]
        section[path[-1]] = value

    return change


DECODER = ("model", "decoder")
REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no model": (lambda c: c.pop("model"), "has no section model: an object is needed"),
    "no decoder": (lambda c: c["model"].pop("decoder"), r"has no section model\.decoder"),
    "decoder is a list": (_set(*DECODER, value=[]), r"has a list as model\.decoder"),
    "search is a text": (_set("search", value="greedy"), "has a str as search"),
    "no file name": (lambda c: c["model"]["decoder"].pop("filename"), "filename that is not a text"),
    "parent folder": (_set(*DECODER, "filename", value="../model.onnx"), "a file in the folder is needed"),
    "missing model": (
        _set(*DECODER, "filename", value="other.onnx"),
        "which is not there: put it there",
    ),
    "vision": (_set("model", "vision", value={"filename": "vision.onnx"}), r"has the section model\.vision"),
    "encoder": (_set("model", "encoder", value={}), r"has the section model\.encoder"),
    "pipeline": (_set(*DECODER, "pipeline", value=[]), r"has the section model\.decoder\.pipeline"),
    "other provider": (
        _set(*DECODER, "session_options", "provider_options", value=[{"cpu": {}}, {"cuda": {"x": "1"}}]),
        "runs the model on cuda, and delta attention runs on the CPU",
    ),
    "other library": (
        _set(*DECODER, "session_options", "custom_ops_library", value="mine.so"),
        r"names the custom_ops_library 'mine\.so' already",
    ),
    "sliding inputs": (_set(*DECODER, "sliding_window", value={"slide_inputs": True}), "sliding_window.slide_inputs"),
    "sliding caches": (
        _set(*DECODER, "sliding_window", value={"slide_key_value_cache": True}),
        "sliding_window.slide_key_value_cache",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configurations_that_are_refused(tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    config = copy.deepcopy(genai_config())
    change(config)
    source = write_genai_folder(tmp_path / "in", config)
    with pytest.raises(DeltaLLMError, match=words) as refusal:
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert str(refusal.value).endswith(".")
    assert listing(tmp_path) == ["in", *(f"in/{file}" for file in listing(source))]


def test_a_configuration_that_is_no_object(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    for text, words in (("{", "cannot be read as JSON"), ("[]", "holds a list"), ("\xff\xfe", "cannot be read")):
        (source / "genai_config.json").write_text(text, encoding="latin-1")
        with pytest.raises(DeltaLLMError, match=words):
            deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_model_of_the_builder_without_its_configuration(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    (source / "genai_config.json").unlink()
    with pytest.raises(DeltaLLMError, match=r"model of onnxruntime-genai but no genai_config\.json: put it there"):
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert listing(tmp_path) == ["in", *(f"in/{file}" for file in listing(source))]
    assert deltallm_onnx.rewrite(source / "model.onnx", tmp_path / "alone.onnx", CONFIG).notes == ()


def test_a_file_alone_leaves_its_configuration_behind(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    report = deltallm_onnx.rewrite(source / "model.onnx", tmp_path / "alone.onnx", CONFIG)
    assert [f"rewrite the folder {source}" in note for note in report.notes] == [True]


def test_a_folder_that_was_rewritten_already(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    with pytest.raises(DeltaLLMError, match="already rewritten by deltallm-onnx"):
        deltallm_onnx.rewrite(tmp_path / "out", tmp_path / "again", CONFIG)
    deltallm_onnx.rewrite(source, tmp_path / "bare", CONFIG, copy_library=False)
    with pytest.raises(DeltaLLMError, match="already rewritten by deltallm-onnx"):
        deltallm_onnx.rewrite(tmp_path / "bare", tmp_path / "again", CONFIG)
    assert not (tmp_path / "again").exists()


def test_a_file_with_the_name_of_the_library(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    (source / LIBRARY).write_bytes(b"somebody else's")
    with pytest.raises(DeltaLLMError, match=f"has a file {LIBRARY} already"):
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(tmp_path / "nowhere.so"))
    source = write_genai_folder(tmp_path / "in")
    with pytest.raises(DeltaLLMError, match=r"nowhere\.so.*--no-copy-library leaves it out"):
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()
    deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG, copy_library=False)


def test_the_library_is_copied_from_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-genai follows links, and refuses what lies outside the model's folder."""
    link = tmp_path / "linked.so"
    link.symlink_to(ops_library_path())
    monkeypatch.setenv("DELTALLM_OPS_LIBRARY", str(link))
    deltallm_onnx.rewrite(write_genai_folder(tmp_path / "in"), tmp_path / "out", CONFIG)
    copied = (
        tmp_path / "out" / read_config(tmp_path / "out")["model"]["decoder"]["session_options"]["custom_ops_library"]
    )
    assert copied.read_bytes() == ops_library_path().read_bytes()
    assert not copied.is_symlink()


def test_layers_that_stay_dense(tmp_path: Path) -> None:
    """genai_config.json has one head size; a cache of numbers beside packed ones must say its own."""

    def declined(g: GraphBuilder) -> None:
        [node for node in g.nodes if node.op_type == "GroupQueryAttention"][1].attribute.add(
            name="smooth_softmax", i=1, type=AttributeProto.INT
        )

    def rewrite(source: Path, cache_format: str) -> None:
        config = CONFIG.replace(cache_format=cache_format)
        deltallm_onnx.rewrite(source, tmp_path / cache_format, config, allow_partial=True)

    source = write_genai_folder(tmp_path / "in", changed=declined)
    for cache_format in ("int8", "int4"):
        with pytest.raises(DeltaLLMError, match=r"past_key_values\.1\.key belongs to a layer that stays dense"):
            rewrite(source, cache_format)
    rewrite(source, "float16")
    model = onnx.load(source / "model.onnx", load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.shape.dim[3].dim_value = HEAD_SIZE
    onnx.save(model, source / "model.onnx")
    rewrite(source, "int8")
    assert sorted(shape[3] for shape in pasts(tmp_path / "int8")) == [HEAD_SIZE] * 4 + [HEAD_SIZE + 4] * 4
    with pytest.raises(DeltaLLMError, match="stays dense"):
        rewrite(source, "int4")


def test_other_letters_stay_readable(tmp_path: Path) -> None:
    config = genai_config()
    config["model"]["note"] = "größer ≥ 3"
    deltallm_onnx.rewrite(write_genai_folder(tmp_path / "in", config), tmp_path / "out", CONFIG)
    text = (tmp_path / "out" / "genai_config.json").read_text(encoding="utf-8")
    assert "größer ≥ 3" in text
    assert json.loads(text)["model"]["note"] == "größer ≥ 3"


@pytest.mark.parametrize("cache_format", ["float32", "int8", "int4"])
@pytest.mark.parametrize(
    ("field", "said", "found"),
    [("head_size", 20, HEAD_SIZE), ("num_hidden_layers", 3, 2), ("num_key_value_heads", 6, KV_HEADS)],
)
def test_a_configuration_of_another_model(tmp_path: Path, cache_format: str, field: str, said: int, found: int) -> None:
    source = write_genai_folder(tmp_path / "in", genai_config(**{field: said}))
    sentence = rf"model\.decoder\.{field} is {said}, and in the graph it is {found}: correct it"
    with pytest.raises(DeltaLLMError, match=sentence):
        deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG.replace(cache_format=cache_format))
    assert listing(tmp_path) == ["in", *(f"in/{file}" for file in listing(source))]


def test_layers_with_other_states_are_counted(tmp_path: Path) -> None:
    """LFM2 has convolutions before and behind its attention."""

    def convolution(g: GraphBuilder) -> None:
        state = g.input("state.4", TensorProto.FLOAT, ["batch", 7, 3])
        g.output(g.node("Relu", state), TensorProto.FLOAT, ["batch", 7, 3])

    inputs = {**genai_config()["model"]["decoder"]["inputs"], "past_conv_names": "state.%d"}
    for layers in (2, 4, 6):
        config = genai_config(num_hidden_layers=layers, inputs=inputs)
        source = write_genai_folder(tmp_path / f"in{layers}", config, changed=convolution)
        with pytest.raises(DeltaLLMError, match=f"num_hidden_layers is {layers}, and in the graph it is 5"):
            deltallm_onnx.rewrite(source, tmp_path / "out", CONFIG)
    config = genai_config(num_hidden_layers=5, inputs=inputs)
    deltallm_onnx.rewrite(write_genai_folder(tmp_path / "in", config, changed=convolution), tmp_path / "out", CONFIG)


def test_a_folder_is_not_written_to_a_file(tmp_path: Path) -> None:
    source = write_genai_folder(tmp_path / "in")
    with pytest.raises(DeltaLLMError, match=r"out\.onnx ends in \.onnx, and a folder becomes a folder"):
        deltallm_onnx.rewrite(source, tmp_path / "out.onnx", CONFIG)
    assert listing(tmp_path) == ["in", *(f"in/{file}" for file in listing(source))]
