"""Statistics of queries, keys and values against numpy, on the dense model's own tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from support.tiny_decoder import HEAD_SIZE, KV_HEADS, LAYERS, POSITIONS, QUERY_HEADS, VOCABULARY, tiny_decoder

from deltallm_onnx import DeltaLLMError
from deltallm_onnx.calibration.statistics import layer_statistics

WINDOWS, TOKENS, SINKS = 3, 37, 4
#: Rotated channel pairs: fewer than HEAD_SIZE / 2, so that some channels pass through.
PAIRS = 3


def windows() -> np.ndarray:
    return np.random.default_rng(4).integers(0, VOCABULARY, (WINDOWS, TOKENS))


def angles() -> np.ndarray:
    return np.arange(POSITIONS)[:, None] * 50.0 ** -np.linspace(0, 1, PAIRS)


def saved(folder: Path, *, rotary: bool = False, scale: float | None = None) -> Path:
    model = tiny_decoder(grouped_query=rotary)
    nodes = [node for node in model.graph.node if node.op_type in ("Attention", "GroupQueryAttention")]
    for node in nodes:
        if scale is not None:
            node.attribute.append(helper.make_attribute("scale", scale))
        if rotary:
            node.attribute.append(helper.make_attribute("do_rotary", 1))
            node.input.extend(["cos", "sin"])
    for name, table in (("cos", np.cos(angles())), ("sin", np.sin(angles()))) if rotary else ():
        model.graph.initializer.append(numpy_helper.from_array(table.astype(np.float32), name))
    folder.mkdir(exist_ok=True)
    path = folder / "dense.onnx"
    onnx.save(model, path)
    return path


def dense_tensors(path: Path) -> dict[str, np.ndarray]:
    """query.N, key.N and value.N [windows, tokens, heads, head size] of the dense model, run by ONNX Runtime alone."""
    model = onnx.load(path)
    names = [f"{role}.{layer}" for layer in range(LAYERS) for role in ("query", "key", "value")]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = windows()
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    feeds["position_ids"] = np.tile(np.arange(TOKENS), (WINDOWS, 1))
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((WINDOWS, KV_HEADS, 0, HEAD_SIZE), np.float32)
    tensors = dict(zip(names, session.run(names, feeds), strict=True))
    return {name: x.reshape(WINDOWS, TOKENS, -1, HEAD_SIZE).astype(np.float64) for name, x in tensors.items()}


def rotated(x: np.ndarray) -> np.ndarray:
    """As complex numbers: channel c and c + PAIRS turn together by position times frequency."""
    turn = np.exp(1j * angles())[:TOKENS, None]
    pairs = (x[..., :PAIRS] + 1j * x[..., PAIRS : 2 * PAIRS]) * turn
    return np.concatenate([pairs.real, pairs.imag, x[..., 2 * PAIRS :]], axis=-1)


@pytest.mark.parametrize("rotary", [False, True])
def test_against_numpy(tmp_path: Path, *, rotary: bool) -> None:
    path = saved(tmp_path, rotary=rotary)
    # ONNX Runtime's own operator rotates no heads of 8 channels: what enters the first layer is the same without it.
    tensors = dense_tensors(saved(tmp_path / "plain"))
    found = layer_statistics(path, windows(), sinks=SINKS, threads=1)
    assert [entry.geometry.layer for entry in found] == list(range(LAYERS))
    for layer, entry in enumerate(found[: 1 if rotary else LAYERS]):
        query, key, value = (tensors[f"{role}.{layer}"] for role in ("query", "key", "value"))
        if rotary:
            query, key = rotated(query), rotated(key)
        query, key, value = (x[:, SINKS:] for x in (query, key, value))
        group = QUERY_HEADS // KV_HEADS
        for head in range(KV_HEADS):
            for c in range(HEAD_SIZE):
                q = query[:, :, head * group : (head + 1) * group, c]
                k, v = key[:, :, head, c], value[:, :, head, c]
                # float32 tensors of two runs, of which the statistics are means.
                for name, expected in (
                    ("query_rms", np.sqrt((q**2).mean())),
                    ("key_rms", np.sqrt((k**2).mean())),
                    ("key_std", k.std()),
                    ("change_rms", np.sqrt(((k[:, 1:] - k[:, :-1]) ** 2).mean())),
                    ("value_rms", np.sqrt((v**2).mean())),
                ):
                    assert getattr(entry, name)[head, c] == pytest.approx(expected, rel=1e-4), (name, head, c)
        assert entry.tokens == WINDOWS * (TOKENS - SINKS)
        assert entry.scale == pytest.approx(HEAD_SIZE**-0.5)


def test_the_scale_is_the_nodes(tmp_path: Path) -> None:
    entries = layer_statistics(saved(tmp_path, scale=0.37), windows(), threads=1)
    assert [entry.scale for entry in entries] == [pytest.approx(0.37)] * LAYERS


@pytest.mark.parametrize("shape", [(3,), (0, 9), (2, 5)])
def test_too_little_text_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeltaLLMError, match="at least 2 tokens behind the sinks"):
        layer_statistics(saved(tmp_path), np.zeros(shape, np.int64), sinks=4)
