"""Models exported by plain torch.onnx.export through transformers' SDPA attention; with θ = 0 they are as eager's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import transformers
from support.hf_reference import largest_error, load_eager, scenarios
from support.sdpa_export import export_sdpa
from support.tiny_models import ARCHITECTURES, TITLES, save_config, save_tiny

import deltallm_onnx
from deltallm_onnx import profile
from deltallm_onnx.export.quiet import quiet
from deltallm_onnx.runtime import DecoderModel, generate

#: Float32 logits of a few layers, standard deviation about 1, computed in two orders.
TOLERANCE = 1e-4
EXACT = profile("exact").replace(window=3, sinks=1)
#: Those that outgrow the models' windows, with cached steps and with padding.
SCENARIOS = ("decode past the window", "chunked prefill", "left padding")
NEW_TOKENS = 4

#: transformers' eager attention, exported decomposed, for architectures without SDPA.
EAGER = {"gemma2": "transformers has no SDPA attention for it; this is its eager attention exported"}
UNTRACEABLE = ("mixtral", "qwen3_moe", "granitemoehybrid")
UNTRACEABLE_REASON = "torch.export cannot follow how transformers hands tokens to experts"
NO_SDPA = {"bloom": "transformers has no SDPA attention for it"}

#: opset 23 has an Attention operator, older ones MatMul, Softmax and MatMul: in turns, and both for Llama.
TRACEABLE = [name for name in ARCHITECTURES if name not in UNTRACEABLE]
CASES = [(name, 18 if name in EAGER or place % 2 else 23) for place, name in enumerate(TRACEABLE)] + [("llama", 18)]

_SIZES: dict[str, Any] = {"vocab_size": 83, "hidden_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def falcon() -> Any:
    """Multi-query attention in a class of its own; `convert` cannot trace it, plain torch.onnx.export does."""
    heads = {"num_attention_heads": 6, "multi_query": True, "new_decoder_architecture": False, "alibi": False}
    return transformers.FalconConfig(num_hidden_layers=2, ffn_hidden_size=97, **heads, **_SIZES)


def session(path: Path, *, library: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if library:
        deltallm_onnx.register(options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens of transformers without any cache."""
    ids = list(prompt)
    for _ in range(count):
        with torch.no_grad(), quiet():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("name", "opset"), [*CASES, ("falcon", 18)])
def test_equals_eager(name: str, opset: int, tmp_path: Path, architecture_cell: Callable[..., None]) -> None:
    folder, dense, delta = tmp_path / "model", tmp_path / "dense.onnx", tmp_path / "delta.onnx"
    save_config(falcon(), folder) if name == "falcon" else save_tiny(name, folder)
    export_sdpa(folder, dense, opset=opset, implementation="eager" if name in EAGER else "sdpa")
    report = deltallm_onnx.rewrite(dense, delta, EXACT)
    eager = load_eager(folder)
    assert report.rewrite.rewritten == report.rewrite.layers == eager.config.num_hidden_layers
    expected = [scenario for scenario in scenarios(eager, seed=5) if scenario.name in SCENARIOS]
    errors = largest_error(session(delta, library=True), expected)
    assert max(errors.values()) < TOLERANCE, errors
    # Caches with rows to spare, updated in place: no length in the graph may come from them.
    prompt = expected[0].steps[0].input_ids[0].tolist()
    tokens = generate(DecoderModel(delta), prompt, max_new_tokens=NEW_TOKENS).tokens
    assert tokens == greedy(eager, prompt, NEW_TOKENS)
    if name == "llama":
        # 18 is the oldest opset that the fallback functions have.
        without = largest_error(session(delta, library=False), expected)
        assert max(without.values()) < TOLERANCE, without
    if (name, opset) != ("llama", 18):
        architecture_cell(TITLES[name], "SDPA", difference=max(errors.values()), reason=EAGER.get(name))


def test_what_torch_cannot_trace(tmp_path: Path, architecture_cell: Callable[..., None]) -> None:
    """Shown with one of them; all route tokens alike."""
    save_tiny(UNTRACEABLE[0], tmp_path / "model")
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"torch\.export"):
        export_sdpa(tmp_path / "model", tmp_path / "dense.onnx", opset=23)
    for name in UNTRACEABLE:
        architecture_cell(TITLES[name], "SDPA", reason=UNTRACEABLE_REASON)


@pytest.mark.parametrize("name", NO_SDPA)
def test_what_has_no_sdpa(name: str, architecture_cell: Callable[..., None]) -> None:
    config = transformers.CONFIG_MAPPING[name](n_layer=2, n_head=6, **_SIZES)
    with pytest.raises(ValueError, match="does not support an attention implementation"):
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    architecture_cell(TITLES[name], "SDPA", reason=NO_SDPA[name])
