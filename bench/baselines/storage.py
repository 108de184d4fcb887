"""How a row of keys or values is stored: its bytes, and what is read back.

Eviction and selection say which rows are kept or read, not how a row is stored; each is measured with several storages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

#: Bytes of a half-precision scale or zero.
HALF = 2
#: Channels that share a scale in rows of 4-bit codes.
INT4_GROUP = 32


@dataclasses.dataclass(frozen=True)
class Storage:
    """A format of rows.

    Attributes:
        name: in the record and the tables.
        row_bytes: head size D to the bytes of one row of keys, or of values, of one KV head.
        stored: float32 [..., D] to what is read back.
    """

    name: str
    row_bytes: Callable[[int], int]
    stored: Callable[[Tensor], Tensor]


def halves(x: Tensor) -> Tensor:
    """Rounded to half precision."""
    return x.half().float()


def int8_rows(x: Tensor) -> Tensor:
    """One scale per row, the largest magnitude over 127 (R8 of docs/cache-format.md, for finite rows)."""
    largest = x.abs().amax(dim=-1, keepdim=True)
    scale = halves(largest / 127)
    # Behind ±127.5 steps a clamped code would be more than half a step off; only subnormal scales are so coarse.
    above = torch.nextafter(scale.half(), torch.tensor(torch.inf, dtype=torch.float16)).float()
    scale = torch.where(scale < largest / 127.5, above, scale)
    codes = (x / torch.where(scale == 0, 1, scale)).round().clamp(-127, 127)
    return codes * scale


def groups_of_codes(x: Tensor, dim: int, bits: int) -> Tensor:
    """Codes of `bits` bits between the smallest and the largest number along `dim`, half-precision scale and zero."""
    levels = 2**bits - 1
    zero = halves(x.amin(dim=dim, keepdim=True))
    scale = halves((x.amax(dim=dim, keepdim=True) - zero) / levels)
    codes = ((x - zero) / torch.where(scale == 0, 1, scale)).round().clamp(0, levels)
    return zero + codes * scale


def int4_rows(x: Tensor) -> Tensor:
    """Groups of 32 channels of a row with a scale and a zero each; a last group may be smaller."""
    return torch.cat([groups_of_codes(part, -1, 4) for part in x.split(INT4_GROUP, dim=-1)], dim=-1)


def exact(x: Tensor) -> Tensor:
    """As it is."""
    return x


def float32_bytes(head_size: int) -> int:
    """Of a row."""
    return 4 * head_size


def float16_bytes(head_size: int) -> int:
    """Of a row."""
    return 2 * head_size


def int8_bytes(head_size: int) -> int:
    """Of a row: codes and a scale."""
    return head_size + HALF


def int4_bytes(head_size: int) -> int:
    """Of a row: codes, and a scale and a zero per group."""
    return -(-head_size // 2) + -(-head_size // INT4_GROUP) * 2 * HALF


FLOAT32 = Storage("float32", float32_bytes, exact)
FLOAT16 = Storage("float16", float16_bytes, halves)
INT8 = Storage("int8", int8_bytes, int8_rows)
INT4 = Storage("int4", int4_bytes, int4_rows)

STORAGES = {storage.name: storage for storage in (FLOAT32, FLOAT16, INT8, INT4)}
