"""What is read of an .ort, against the .onnx it was made from, against ONNX Runtime, and for damaged files."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from support.tiny_decoder import save_tiny_decoder

from deltallm_onnx.errors import DeltaLLMError
from deltallm_onnx.inspect import inspect_model
from deltallm_onnx.ort_format import OrtForm, write_ort
from deltallm_onnx.runtime import DecoderModel, ops_library_path, ort_file, read_model_file
from deltallm_onnx.runtime.ort_file import read_ort_file

Rewritten = Callable[[str], Path]
Frozen = Callable[[str, OrtForm], Path]


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int4", "unfused"])
def test_signature_is_that_of_the_onnx(rewritten: Rewritten, frozen: Frozen, name: str) -> None:
    found, expected = (DecoderModel(path).signature for path in (frozen(name, "operator"), rewritten(name)))
    assert found.caches == expected.caches
    assert found.input_types == expected.input_types
    assert found.statistics == expected.statistics
    assert found.delta_nodes == expected.delta_nodes > 0
    bodies = DecoderModel(rewritten(name)).signature.without_function
    assert set(found.without_function) >= set(bodies)
    assert found.without_function, "an .ort has no function bodies"


def test_group_query_attention_stays_in_place(tmp_path: Path) -> None:
    path = save_tiny_decoder(tmp_path, grouped_query=True)
    found = DecoderModel(write_ort(path, tmp_path / "model.ort").model).signature
    assert found == DecoderModel(path).signature
    assert all(cache.in_place for cache in found.caches)


@pytest.mark.parametrize("name", ["float16", "int4", "unfused"])
def test_inspection_is_that_of_the_onnx(rewritten: Rewritten, frozen: Frozen, name: str) -> None:
    found, expected = inspect_model(frozen(name, "operator")), inspect_model(rewritten(name))
    if name == "unfused":  # whose sites have no caches, by which the .onnx would say how many heads there are
        unknown = {"num_heads": None, "kv_num_heads": None, "head_size": None}
        assert [dataclasses.replace(site, **unknown) for site in found.sites] == list(expected.sites)
    else:
        assert found.sites == expected.sites
    assert found.metadata == expected.metadata
    assert found.cache_bytes_per_token == expected.cache_bytes_per_token
    assert found.cache_bytes_per_row == expected.cache_bytes_per_row
    assert (found.ort_form, expected.ort_form) == ("operator", None)
    assert not found.has_fallback


def test_inspection_of_bodies(frozen: Frozen, rewritten: Rewritten) -> None:
    found, expected = inspect_model(frozen("float16", "fallback")), inspect_model(rewritten("float16"))
    assert found.ort_form == "fallback"
    assert found.needs_library == ()
    assert found.cache_bytes_per_token == expected.cache_bytes_per_token
    assert found.metadata == expected.metadata


def test_values_are_those_of_a_session(frozen: Frozen) -> None:
    path = frozen("int4", "operator")
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(ops_library_path()))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    model = read_ort_file(path)
    for values, expected in ((model.graph.input, session.get_inputs()), (model.graph.output, session.get_outputs())):
        assert [value.name for value in values] == [value.name for value in expected]
        for value, told in zip(values, expected, strict=True):
            dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            assert dims == [told.shape[i] or 0 for i in range(len(dims))]


def test_weights_are_those_of_the_onnx_where_they_are_read(rewritten: Rewritten, frozen: Frozen) -> None:
    """Tensors that no optimization touches: the thresholds."""
    source, found = read_model_file(rewritten("float32")), read_ort_file(frozen("float32", "operator"))
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    theta = {node.input[16] for node in found.graph.node if node.op_type == "DeltaAttention"}
    assert theta
    stored = {tensor.name: tensor for tensor in found.graph.initializer}
    for name in theta:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[name]), tensors[name])


def test_reading_leaves_the_logging_of_the_process_alone(frozen: Frozen) -> None:
    """In a process of its own: in this one the classes are imported, and pytest has handlers already."""
    path = frozen("int8", "operator")
    program = f"""
import logging, pathlib
from deltallm_onnx.runtime.ort_file import read_ort_file
read_ort_file(pathlib.Path({str(path)!r}))
print(logging.getLogger().handlers)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_what_is_no_ort_file_is_refused(rewritten: Rewritten, tmp_path: Path) -> None:
    for content in (b"", b"ORTM", b"\0\0\0\0ORTM", b"text" * 9, rewritten("int8").read_bytes()):
        path = tmp_path / "model.ort"
        path.write_bytes(content)
        with pytest.raises(DeltaLLMError, match=r"model\.ort (is not an \.ort model|cannot be read)"):
            DecoderModel(path)
    with pytest.raises(DeltaLLMError, match="no file"):
        read_ort_file(tmp_path / "missing.ort")
    with pytest.raises(DeltaLLMError, match="directory"):
        read_ort_file(tmp_path)


def test_more_than_any_model_has_is_refused(frozen: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    path = frozen("int8", "operator")
    size = path.stat().st_size
    monkeypatch.setattr(ort_file, "_MOST_BYTES", 10 * size)
    read_ort_file(path)
    monkeypatch.setattr(ort_file, "_MOST_BYTES", size // 10)
    with pytest.raises(DeltaLLMError, match=r"is not an \.ort model"):
        read_ort_file(path)


def test_damaged_files_are_read_or_refused(frozen: Frozen, tmp_path: Path) -> None:
    """Truncated anywhere, or with some bytes changed: an offset or a count may then be anything."""
    content = frozen("int4", "operator").read_bytes()
    random = np.random.default_rng(8)
    path = tmp_path / "damaged.ort"
    refused = 0
    for attempt in range(300):
        damaged = bytearray(content)
        if attempt % 3 == 0:
            del damaged[int(random.integers(len(content))) :]
        else:
            for at in random.integers(8, len(content), 40 if attempt % 3 == 1 else 3):
                damaged[at] = int(random.integers(256))
        path.write_bytes(damaged)
        try:
            read_ort_file(path)
        except DeltaLLMError as error:
            assert str(path) in str(error)  # noqa: PT017  # a file that is read is as right as one that is refused
            refused += 1
    assert refused > 100
