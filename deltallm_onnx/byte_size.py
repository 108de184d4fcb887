"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from deltallm_onnx.errors import DeltaLLMError

_UNITS = {"B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("IB", 1024))
}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,6})?) ?([A-Za-z]+)", re.ASCII)


def parse_bytes(text: str, what: str) -> int:
    """Bytes of an amount such as 512MB, 1.5 GB or 512MiB; MB counts in thousands, MiB in 1024.

    Args:
        text: a positive number and a unit.
        what: the option, for the refusal.

    Raises:
        DeltaLLMError: for anything else: no number, no unit, a negative number or zero.
    """
    found = _AMOUNT.fullmatch(text.strip())
    unit = _UNITS.get(found[2].upper()) if found else None
    amount = int(float(found[1]) * unit) if found and unit else 0
    if amount < 1:
        raise DeltaLLMError(
            f"{what} is {text!r}: give a positive number with a unit (B, kB, MB, GB, TB, KiB, MiB, GiB or TiB), "
            "such as 512MB."
        )
    return amount
