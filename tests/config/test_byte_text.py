"""Byte counts for people."""

from __future__ import annotations

import pytest

from deltallm_onnx.byte_text import byte_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (240, "240 B"),
        (117.649, "117.6 B"),
        (999.94, "999.9 B"),
        (999.96, "1 kB"),
        (1440, "1.44 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1 MB"),
        (4_943_571_968, "4.944 GB"),
        (2.5e15, "2500 TB"),
        (-50_200, "-50.2 kB"),
    ],
)
def test_every_count_has_its_unit(count: float, text: str) -> None:
    assert byte_text(count) == text
