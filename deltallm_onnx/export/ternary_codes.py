"""Ternary matrices as com.microsoft MatMulNBits stores them, with one pilot channel in every block of inputs.

A row of K weights is cut into blocks of `block_size − 1`; the last place of every block belongs to the pilot, a channel
whose weight is 0 (export/ternary.py says what it is for). Places behind the last weight are 0 too. The weight t ∈
{−1, 0, 1} is the code t + 2^(bits−1), MatMulNBits' default zero point; the first weight lies in the lowest bits.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deltallm_onnx.errors import DeltaLLMError


@dataclasses.dataclass(frozen=True)
class TernaryFormat:
    """How the codes of a ternary matrix are laid out.

    Attributes:
        bits: per weight. 2 runs on ONNX Runtime 1.24 and later, and fast with AVX-512 from 1.28 and with AVX2 from
            1.29 on; before, it is a hundred times slower. 4 is as exact and fast on every version that loads an
            exported graph (1.23 and later), for twice the memory.
        block_size: places of a block, the pilot's included; a power of 2. ONNX Runtime has fast kernels for 32, 64 and
            128 at 2 bits; 128 is the fastest and the smallest of them for rows of thousands.
    """

    bits: int = 2
    block_size: int = 128

    def __post_init__(self) -> None:
        if self.bits not in {2, 4}:
            raise DeltaLLMError(f"Ternary weights of {self.bits} bits were asked for: choose 2 or 4.")

    def blocks(self, inputs: int) -> int:
        """Blocks of a row of so many weights."""
        return -(-inputs // (self.block_size - 1))

    def shape(self, rows: int, inputs: int) -> tuple[int, int, int]:
        """Shape of the codes [rows, blocks, bytes of a block]."""
        return rows, self.blocks(inputs), self.block_size * self.bits // 8


def pack_ternary(ternary: Tensor, form: TernaryFormat) -> Tensor:
    """The codes of a matrix.

    Args:
        ternary: integer or float [N, K] of −1, 0 and 1.
        form: the layout.

    Returns:
        uint8 `form.shape(N, K)`.
    """
    N, K = ternary.shape
    blocks, channels = form.blocks(K), form.block_size - 1
    zero = 1 << (form.bits - 1)
    codes = np.full((N, blocks * channels), zero, np.uint8)
    codes[:, :K] = ternary.to(torch.int8).numpy() + np.int8(zero)
    places = np.full((N, blocks, form.block_size), zero, np.uint8)
    places[:, :, :-1] = codes.reshape(N, blocks, channels)
    # The codes of one byte of the result are the bytes of one little-endian word: shift them together in it.
    per_byte = 8 // form.bits
    words = places.view(f"<u{per_byte}")
    packed = words.copy()
    for place in range(1, per_byte):
        packed |= words >> (place * (8 - form.bits))
    return torch.from_numpy(packed.astype(np.uint8))


def unpack_ternary(codes: Tensor, form: TernaryFormat) -> Tensor:
    """The weights of codes from `pack_ternary`, pilots and padding included.

    Args:
        codes: uint8 [N, blocks, bytes of a block].
        form: the layout.

    Returns:
        float32 [N, blocks, block_size].
    """
    return torch.from_numpy(
        np.take(_fields(form.bits), codes.numpy(), axis=0, mode="clip").reshape(*codes.shape[:2], -1)
    )


@functools.cache
def _fields(bits: int) -> NDArray[np.float32]:
    """The weights that lie in each of the 256 bytes: [256, 8 / bits]. Looking them up beats shifting by far."""
    shifts = np.arange(0, 8, bits)
    return ((np.arange(256)[:, None] >> shifts) & ((1 << bits) - 1)).astype(np.float32) - (1 << (bits - 1))


def with_pilots(activation: Tensor, pilot: float, form: TernaryFormat) -> Tensor:
    """Activations in the places of their weights.

    Args:
        activation: float [..., K].
        pilot: value of the last channel of every block.
        form: the layout.

    Returns:
        float [..., blocks · block_size], 0 behind the last channel.
    """
    K, channels = activation.shape[-1], form.block_size - 1
    blocks = form.blocks(K)
    cut = torch.nn.functional.pad(activation, (0, blocks * channels - K)).unflatten(-1, (blocks, channels))
    return torch.nn.functional.pad(cut, (0, 1), value=pilot).flatten(-2)
