"""The written decoder is a Llama: its sizes, and two forms of attention that give the same logits."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from bench.contenders import PEERS, delta
from bench.filled_cache import FilledCache
from bench.geometry import Geometry
from bench.llama import LLAMA_3_2_1B, WEIGHTS_FILE, LlamaConfig, projections, weights, write_model, write_weights
from bench.past import one_head_caches
from deltallm_onnx.runtime import DecoderModel

# Sizes differ wherever two could be confused; 96 is no multiple of the other channels.
CONFIG = LlamaConfig(
    geometry=Geometry("toy", 6, 2, 32), hidden_size=160, layers=3, intermediate_size=448, vocabulary=517, positions=300
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("llama")
    write_weights(CONFIG, made)
    return made


def test_llama_3_2_1b_has_its_number_of_parameters() -> None:
    # The published 1 235 814 400, less the 33 norms of 2048; input and output embeddings are tied there.
    matrices = sum(inputs * outputs for inputs, outputs in projections(LLAMA_3_2_1B).values()) * LLAMA_3_2_1B.layers
    embedding = LLAMA_3_2_1B.vocabulary * LLAMA_3_2_1B.hidden_size
    assert matrices + embedding == 1_235_814_400 - 33 * 2048
    # Two codes to a byte: what the weights file holds beside scales and the embedding.
    codes = sum(w.nbytes for w in weights(LLAMA_3_2_1B) if w.element == TensorProto.UINT8)
    assert codes == (matrices + embedding) // 2


def test_variants_share_one_file_of_aligned_weights(folder: Path) -> None:
    data = (folder / WEIGHTS_FILE).read_bytes()
    places = []
    for contender in (PEERS[0], delta("float16")):
        model = onnx.load(write_model(CONFIG, contender, folder), load_external_data=False)
        outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        found = {t.name: {entry.key: entry.value for entry in t.external_data} for t in outside}
        places.append(found)
        for place in found.values():
            assert place["location"] == WEIGHTS_FILE
            assert int(place["offset"]) % 65536 == 0
            assert int(place["offset"]) + int(place["length"]) <= len(data)
    assert places[0] == places[1]
    spans = sorted((int(p["offset"]), int(p["length"])) for p in places[0].values())
    assert all(a + n <= b for (a, n), (b, _) in itertools.pairwise(spans))


def test_weights_that_are_there_are_kept_and_others_replaced(tmp_path: Path) -> None:
    path = write_weights(CONFIG, tmp_path)
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    write_weights(CONFIG, tmp_path)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(content[:-1])
    write_weights(CONFIG, tmp_path)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == [WEIGHTS_FILE]


def test_delta_attention_in_its_window_gives_the_logits_of_group_query_attention(folder: Path) -> None:
    random = np.random.default_rng(11)
    calls = [random.integers(0, CONFIG.vocabulary, (1, size)) for size in (45, 1, 1, 7, 1)]
    logits = {}
    for contender in (PEERS[0], delta("float32")):
        model = DecoderModel(write_model(CONFIG, contender, folder), threads=1)
        cache = model.new_cache(limit=80)
        logits[contender.name] = np.concatenate([model.step(tokens, cache)[0] for tokens in calls])
        assert all(tensor.in_place for tensor in model.signature.caches)
    first, second = logits.values()
    assert first.shape == (len(calls), 1, CONFIG.vocabulary)
    assert np.ptp(first[:, 0].argmax(axis=-1)) > 0  # the model says different things at different places
    # MatMulNBits rounds activations to 8 bits: a last bit before it may become a step of 1/127 behind it.
    assert np.abs(first - second).max() <= 0.02 * np.abs(first).max()
    assert np.linalg.norm(first - second) <= 5e-3 * np.linalg.norm(first)


@pytest.mark.parametrize("contender", [PEERS[0], PEERS[2], delta("float16")], ids=lambda c: c.name)
def test_a_filled_cache_decodes_like_a_grown_one_with_the_same_rows(folder: Path, contender: object) -> None:
    assert hasattr(contender, "name")
    past, steps = 41, 3
    model = DecoderModel(write_model(CONFIG, contender, folder), threads=1)
    filled = FilledCache(model.signature.caches, contender, CONFIG.geometry, past=past, steps=steps)
    assert filled.length == past
    heads = dict(zip(("key", "value"), one_head_caches(contender, CONFIG.geometry, past, past), strict=True))
    grown = model.new_cache(limit=past + steps)
    model.step(np.zeros((1, past), np.int64), grown)
    for tensor in model.signature.caches:
        grown._values[tensor.past].numpy()  # the buffers are the cache's own
        role = tensor.past.rsplit(".", 1)[1]
        _overwrite(grown._values[tensor.past], heads[role])
    for token in (3, 501, 88):
        tokens = np.array([[token]])
        np.testing.assert_array_equal(model.step(tokens, filled)[0], model.step(tokens, grown)[0])
    assert filled.length == past + steps
    assert filled.bytes_allocated == 2 * CONFIG.layers * 2 * heads["key"][0, 0, 0].nbytes * (past + steps)


def _overwrite(value: object, head: np.ndarray) -> None:
    """Write rows into an OrtValue's own memory."""
    import ctypes  # noqa: PLC0415  # only here

    shape = value.shape()  # type: ignore[attr-defined]  # an OrtValue
    whole = np.zeros(shape, head.dtype)
    whole[:, :, : head.shape[2]] = head
    ctypes.memmove(value.data_ptr(), whole.ctypes.data, whole.nbytes)  # type: ignore[attr-defined]  # the same
