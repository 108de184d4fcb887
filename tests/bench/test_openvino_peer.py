"""The optional peer, as far as it goes without OpenVINO."""

from __future__ import annotations

import sys

import pytest

from bench.attention import measure
from bench.contenders import delta
from bench.geometry import Geometry
from bench.layer import Layer, Setting
from bench.openvino_peer import contenders, open_layer, openvino_contender


@pytest.mark.parametrize("decode", [True, False])
def test_contenders_have_names_of_their_own_and_their_comparisons_take_part(*, decode: bool) -> None:
    found = contenders(decode=decode)
    names = [contender.name for contender in found]
    assert len(set(names)) == len(names)
    assert {contender.against for contender in found} - {None} <= set(names)
    assert sum(contender.ours for contender in found) == 3


def test_without_openvino_its_rows_are_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    geometry, setting = Geometry("toy", 6, 2, 32), Setting(90, 1, 4, 1)
    taking_part = [(c.name, c, setting) for c in (openvino_contender("u8", "f32"), delta("float32"))]
    result = measure(taking_part, geometry, seconds=0, ring_bytes=1, rates=None, open_layer=open_layer)
    assert [row["name"] for row in result["contenders"]] == ["ours float32"]
    assert "OpenVINO is not installed" in result["unavailable"]["OpenVINO u8 cache, f32"]
    assert isinstance(open_layer(delta("float32"), geometry, setting, ring_bytes=1), Layer)
