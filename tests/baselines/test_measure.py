"""What is measured: divergence, loss and costs by their definitions, on a model whose attention is a method's."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.baselines.measure import Retrieval, Text, measure
from bench.baselines.model import Reading, TorchModel, query_rms
from bench.baselines.plain import Plain
from bench.baselines.storage import FLOAT32, INT8
from bench.baselines.streaming import StreamingLLM
from deltallm_onnx.evaluation import repeated_sequences

VOCABULARY, LAYERS = 37, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=56,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    path = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> TorchModel:
    return TorchModel(folder)


def windows(tokens: int = 23, count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, (count, tokens))


def test_dense_attention_is_the_models_own(model: TorchModel, folder: Path) -> None:
    own = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    with torch.inference_mode():
        expected = own(torch.from_numpy(windows())).logits.numpy()
    readings = list(model.read(windows(), Plain(FLOAT32)))
    np.testing.assert_allclose(np.concatenate([reading.logits for reading in readings]), expected, atol=2e-5)
    kept = np.concatenate([reading.kept for reading in readings])
    # 3 layers, keys and values, 2 KV heads of 12 channels, 4 bytes each.
    np.testing.assert_array_equal(kept, np.broadcast_to(3 * 2 * 2 * 12 * 4 * np.arange(1, 24), (5, 23)))


def test_queries_are_those_the_model_makes(model: TorchModel) -> None:
    """The root mean square of q over a group's heads, without the scale; the norms of layer 0 need no attention."""
    inputs = torch.from_numpy(windows())
    layer = model.model.model.layers[0]
    with torch.inference_mode():
        hidden = layer.input_layernorm(model.model.model.embed_tokens(inputs))
        query = layer.self_attn.q_proj(hidden).unflatten(-1, (2, 3, 12)).double()
    found = query_rms(model, windows())
    assert len(found) == LAYERS
    assert found[0].dtype == np.float32
    # Rotation turns channels c and c + D/2 into each other and keeps their sum of squares.
    expected = query.square().mean(dim=(0, 1, 3)).unflatten(-1, (2, 6)).sum(dim=-2)
    np.testing.assert_allclose((found[0].astype(np.float64) ** 2).reshape(2, 2, 6).sum(axis=1), expected, rtol=1e-5)


def test_scores_and_costs_are_their_definitions(model: TorchModel) -> None:
    text = Text(model, windows())
    rng = np.random.default_rng(2)
    logits = text.reference + rng.normal(0, 0.7, text.reference.shape).astype(np.float32)
    kept, read = (np.cumsum(rng.integers(1, 99, (5, 23)), axis=1) for _ in range(2))
    parts = [slice(0, 2), slice(2, 5)]
    found = measure((Reading(logits[part], kept[part], read[part]) for part in parts), text, LAYERS)
    p, q = (torch.from_numpy(x).double().log_softmax(-1).numpy()[:, :-1] for x in (text.reference, logits))
    kl = (np.exp(p) * (p - q)).sum(-1)
    loss = -np.take_along_axis(q, windows()[:, 1:, None], -1)[..., 0]
    assert found["kl"] == pytest.approx(kl.mean(), rel=1e-3)
    assert found["kl_of_windows"] == pytest.approx(kl.mean(axis=1), rel=1e-3)
    # 22 predictions in quarters of 6, 6, 5, 5.
    edges = [0, 6, 12, 17, 22]
    quarters = [kl[:, a:b].mean() for a, b in itertools.pairwise(edges)]
    assert found["kl_by_position"] == pytest.approx(quarters, rel=1e-3)
    assert found["perplexity"] == pytest.approx(np.exp(loss.mean()), rel=1e-5)
    assert found["top1_agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).mean(), rel=1e-3)
    assert found["kv_bytes_per_token"] == pytest.approx(kept[:, -1].mean() / 23 / LAYERS, rel=1e-5)
    assert found["kv_bytes_read"] == pytest.approx(read.mean(), rel=1e-5)
    assert found["kv_bytes_read_last"] == pytest.approx(read[:, -5:].mean(), rel=1e-5)


def test_a_method_is_measured_and_left_again(model: TorchModel) -> None:
    text = Text(model, windows())
    assert text.measure(StreamingLLM(1, 4, FLOAT32))["kl"] > 1e-3
    nothing_lost = text.measure(StreamingLLM(1, 22, FLOAT32))
    assert nothing_lost["kl"] < 1e-6
    assert text.measure(Plain(INT8))["kl"] < text.measure(StreamingLLM(1, 4, INT8))["kl"]
    assert text.measure(Plain(FLOAT32))["kl"] == 0
    # 5 rows of 12 bytes and a scale, keys and values, 2 KV heads, over 23 tokens.
    assert text.measure(StreamingLLM(1, 4, INT8))["kv_bytes_per_token"] == pytest.approx(5 * 14 * 4 / 23, rel=1e-5)


def test_what_is_to_be_retrieved_is_scored_by_depth(model: TorchModel) -> None:
    samples = repeated_sequences(windows(tokens=48), begin=1, samples=2, depths=(0.2, 0.8))
    losses = Retrieval(model, samples).measure(Plain(FLOAT32))
    assert list(losses) == ["0.2", "0.8", "None"]
    for depth, loss in losses.items():
        expected = []
        for sample in samples:
            if str(sample.depth) == depth:
                (reading,) = model.read(sample.tokens[None], Plain(FLOAT32))
                log_q = torch.from_numpy(reading.logits[0]).double().log_softmax(-1)
                expected += [-float(log_q[t - 1, sample.tokens[t]]) for t in range(sample.first, 48)]
        assert loss == pytest.approx(np.mean(expected), rel=1e-3)
