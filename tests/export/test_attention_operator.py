"""ONNX Runtime's standard Attention, as `attention_ops` uses it: softcap before the mask, nothing seen gives 0."""

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from deltallm_onnx.export import attention_ops

B, HKV, G, D = 3, 2, 3, 5


def run_onnx(feeds: dict[str, np.ndarray], scale: float, softcap: float) -> list[np.ndarray]:
    names = ["query", "key", "value", "seen", "past_key", "past_value"]
    outputs = ["output", "present_key", "present_value"]
    node = helper.make_node("Attention", names, outputs, scale=scale, softcap=softcap)
    types = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(bool): TensorProto.BOOL}
    inputs = [helper.make_tensor_value_info(n, types[feeds[n].dtype], feeds[n].shape) for n in names]
    results = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs]
    graph = helper.make_graph([node], "attention", inputs, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize(("S", "P"), [(1, 7), (4, 0), (6, 11)])
def test_equals_the_torch_operator(softcap: float, S: int, P: int) -> None:
    generator = np.random.default_rng(11)

    def normal(*shape: int) -> np.ndarray:
        return 2 * generator.standard_normal(shape).astype(np.float32)

    attention_mask = np.ones((B, P + S), np.int64)
    attention_mask[1, : P + S - 1] = 0  # only the last token is real: the queries before it see nothing
    attention_mask[2, :2] = 0
    ids = torch.zeros(B, S, dtype=torch.int64)
    seen = attention_ops.visible(ids, torch.from_numpy(attention_mask), 5).numpy()
    feeds = {
        "query": normal(B, G * HKV, S, D),
        "key": normal(B, HKV, S, D),
        "value": normal(B, HKV, S, D),
        "seen": seen,
        "past_key": normal(B, HKV, P, D),
        "past_value": normal(B, HKV, P, D),
    }
    got = run_onnx(feeds, 0.7, softcap)
    expected = attention_ops.attention(*map(torch.from_numpy, feeds.values()), 0.7, softcap)
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=5e-6)
    blind = ~seen.any(-1)[:, 0]
    if S > 1:
        assert blind.any()
    assert not np.moveaxis(got[0], 1, 2)[blind].any()


def test_visible_by_hand() -> None:
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    ids = torch.zeros(2, 3, dtype=torch.int64)
    everything = attention_ops.visible(ids, attention_mask, attention_ops.NO_WINDOW)[:, 0].int().tolist()
    assert everything == [
        [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]],
    ]
    two = attention_ops.visible(ids, attention_mask, 2)[:, 0].int().tolist()
    assert two == [
        [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
    ]


def test_operators_are_what_torch_library_expects() -> None:
    ids, mask = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 8, dtype=torch.int64)
    torch.library.opcheck(attention_ops.visible, (ids, mask, 4))
    query, new, past = torch.randn(2, 6, 3, 10), torch.randn(2, 2, 3, 10), torch.randn(2, 2, 5, 10)
    seen = attention_ops.visible(ids, mask, 4)
    torch.library.opcheck(attention_ops.attention, (query, new, new + 1, seen, past, past + 1, 0.3, 2.0))
