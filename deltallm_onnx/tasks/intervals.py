"""How sure a score is: standard errors and 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Two-sided 95 % of the normal distribution.
Z95 = 1.959964


def wilson(share: float, items: int) -> tuple[float, float]:
    """95 % interval of a share of `items` independent yes-or-no outcomes, by Wilson's score.

    Unlike share ± 1.96·error it keeps its meaning with few items, and at 0 and 1.
    """
    z2 = Z95**2 / items
    centre = (share + z2 / 2) / (1 + z2)
    half = Z95 * math.sqrt(share * (1 - share) / items + z2 / (4 * items)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float | None]:
    """Mean of ours − theirs over the same items, and its standard error (None for one item)."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    mean = math.fsum(differences) / n
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
