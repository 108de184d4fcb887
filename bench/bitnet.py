"""BitNet checkpoints with random ternary weights, written as their publisher does, tensor by tensor.

The projections are packed, four rows to a byte, with one scale each; embedding and norms are bfloat16.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from bench.geometry import Geometry

_SEED = 20250416
_ROWS_PER_BYTE = 4
#: The bytes that hold four ternary values, each as value + 1 in two bits.
_BYTES = np.array(
    [a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)], np.uint8
)


@dataclasses.dataclass(frozen=True)
class BitNetConfig:
    """Sizes of a BitNet decoder with tied embeddings, as in its config.json.

    Attributes:
        geometry: of the attention.
        hidden_size: channels of the residual stream.
        layers: how many.
        intermediate_size: channels of the MLP.
        vocabulary: tokens.
        positions: longest context.
    """

    geometry: Geometry
    hidden_size: int
    layers: int
    intermediate_size: int
    vocabulary: int
    positions: int

    def to_dict(self) -> dict[str, Any]:
        """As config.json."""
        return {
            "architectures": ["BitNetForCausalLM"],
            "model_type": "bitnet",
            "hidden_act": "relu2",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.geometry.heads,
            "num_key_value_heads": self.geometry.kv_heads,
            "head_dim": self.geometry.head_size,
            "max_position_embeddings": self.positions,
            "vocab_size": self.vocabulary,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "quantization_config": {
                "quant_method": "bitnet",
                "linear_class": "autobitlinear",
                "quantization_mode": "offline",
            },
        }


BITNET_2B = BitNetConfig(
    geometry=Geometry("BitNet-2B", 20, 5, 128),
    hidden_size=2560,
    layers=30,
    intermediate_size=6912,
    vocabulary=128256,
    positions=4096,
)


@dataclasses.dataclass(frozen=True)
class _Stored:
    name: str
    kind: str  # of safetensors
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * (1 if self.kind == "U8" else 2)

    def make(self, random: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Codes are uniform over the ternary ones; scales keep the variance, norms are near 1."""
        if self.kind == "U8":
            return _BYTES[random.integers(0, len(_BYTES), self.shape, dtype=np.uint8)]
        if self.name.endswith("_scale"):
            return _bfloat16(np.full(self.shape, 0.02, np.float32))
        if len(self.shape) == 1:
            return _bfloat16(1 + 0.1 * random.standard_normal(self.shape, dtype=np.float32))
        return _bfloat16(random.standard_normal(self.shape, dtype=np.float32))


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _tensors(config: BitNetConfig) -> Iterator[_Stored]:
    hidden, inner, geometry = config.hidden_size, config.intermediate_size, config.geometry
    attended, kept = geometry.heads * geometry.head_size, geometry.kv_heads * geometry.head_size
    matrices = {
        "self_attn.q_proj": (attended, hidden),
        "self_attn.k_proj": (kept, hidden),
        "self_attn.v_proj": (kept, hidden),
        "self_attn.o_proj": (hidden, attended),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "self_attn.attn_sub_norm": attended,
        "mlp.ffn_sub_norm": inner,
    }
    yield _Stored("model.embed_tokens.weight", "BF16", (config.vocabulary, hidden))
    yield _Stored("model.norm.weight", "BF16", (hidden,))
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in matrices.items():
            yield _Stored(f"{prefix}.{name}.weight", "U8", (rows // _ROWS_PER_BYTE, columns))
            yield _Stored(f"{prefix}.{name}.weight_scale", "BF16", (1,))
        for name, size in norms.items():
            yield _Stored(f"{prefix}.{name}.weight", "BF16", (size,))


def write_checkpoint(config: BitNetConfig, folder: Path) -> None:
    """Write config.json and model.safetensors, unless they are there already.

    Args:
        config: what to write.
        folder: made if missing.
    """
    text = json.dumps(config.to_dict(), indent=1) + "\n"
    described, weights = folder / "config.json", folder / "model.safetensors"
    if weights.is_file() and described.is_file() and described.read_text(encoding="utf-8") == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = weights.with_name(f".{weights.name}")
    with partial.open("wb") as file:
        _write(config, file)
    described.write_text(text, encoding="utf-8")
    partial.replace(weights)


def _write(config: BitNetConfig, file: BinaryIO) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in _tensors(config):
        offsets = [begin, begin + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": offsets}
        begin += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    random = np.random.default_rng(_SEED)
    for tensor in _tensors(config):
        file.write(tensor.make(random).data)
