"""The optional peer, as far as it goes without OpenVINO."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import fake_openvino

from bench import openvino_paged, openvino_peer
from bench.attention import measure
from bench.contenders import PEERS, delta
from bench.geometry import Geometry
from bench.layer import Layer, Setting
from bench.openvino_paged import PagedLayer
from bench.openvino_peer import check_errors, contenders, open_layer, openvino_contender, parse
from deltallm_onnx.errors import DeltaLLMError

GEOMETRY = Geometry("toy", 6, 2, 40)


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino.package())
    monkeypatch.setattr(openvino_paged, "model", lambda geometry: geometry)


@pytest.mark.parametrize("decode", [True, False])
def test_contenders_have_names_of_their_own_and_their_comparisons_take_part(*, decode: bool) -> None:
    found = contenders(decode=decode)
    names = [contender.name for contender in found]
    assert len(set(names)) == len(names)
    assert {contender.against for contender in found} - {None} <= set(names)
    assert {contender.cache for contender in found if contender.name.startswith("OpenVINO")} == {"f16", "bf16", "u8"}
    assert sum(contender.ours for contender in found) == 4


def test_without_openvino_its_rows_are_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    setting = Setting(90, 1, 4, 1)
    taking_part = [(c.name, c, setting) for c in (openvino_contender("u8", "float32"), delta("float32"))]
    result = measure(taking_part, GEOMETRY, seconds=0, ring_bytes=1, rates=None, open_layer=open_layer)
    assert [row["name"] for row in result["contenders"]] == ["ours float32"]
    assert "OpenVINO is not installed" in result["unavailable"]["OpenVINO u8 cache, float32"]


def test_without_openvino_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(SystemExit) as stopped:
        openvino_peer.main(["--past", "300"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: OpenVINO is not installed")


# Whole blocks, a last block that the past fills in part, prompts, and new tokens behind a past.
@pytest.mark.parametrize(
    "setting", [Setting(96, 1, 0, 1), Setting(90, 1, 7, 1), Setting(0, 37, 0, 1), Setting(70, 5, 1, 1)]
)
@pytest.mark.usefixtures("_fake")
def test_a_paged_layer_attends_to_the_rows_of_the_other_contenders(setting: Setting) -> None:
    asked = openvino_contender("f16", "float32")
    layer = PagedLayer(asked, GEOMETRY, setting, ring_bytes=1 << 16)
    exact, _ = Layer(PEERS[0], GEOMETRY, setting, ring_bytes=1).probe()
    for _ in range(5):  # every sequence of the ring is used, put back, and used again
        layer.turn()
    output, statistics = layer.probe()
    assert statistics is None
    assert output.shape == exact.shape
    # float16 rows: half a unit in the last place of keys and values, 2^-12 of each on average.
    assert np.linalg.norm(output - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.usefixtures("_fake")
def test_calls_go_on_through_the_span_and_then_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PagedLayer(openvino_contender("f16", "float32"), GEOMETRY, Setting(90, 1, 5, 1), ring_bytes=1)
    seen: list[tuple[int, bytes]] = []
    infer = fake_openvino.Request.infer

    def recorded(request: Any, *, share_outputs: bool) -> None:
        infer(request, share_outputs=share_outputs)
        seen.append((int(request._tensors["past_lens"][0]), request._output.tobytes()))

    monkeypatch.setattr(fake_openvino.Request, "infer", recorded)
    layer.probe()
    for _ in range(11):
        layer._call()
    lengths = [past for past, _ in seen]
    assert lengths == [88, 88, 89, 90, 91, 92, 88, 89, 90, 91, 92, 88]
    outputs = [output for _, output in seen]
    assert outputs[1:6] == outputs[6:11]
    assert len(set(outputs[1:6])) == 5


@pytest.mark.usefixtures("_fake")
def test_calls_go_round_the_ring_and_every_cache_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = PagedLayer(openvino_contender("f16", "float32"), GEOMETRY, Setting(90, 1, 2, 1), ring_bytes=80_000)
    for pool, pristine in zip(layer._pools, layer._pristine, strict=True):
        assert pristine.any()
        assert (pool[2] == pristine).all()  # two calls warmed up on the other two
    seen: list[tuple[int, bytes]] = []
    infer = fake_openvino.Request.infer

    def recorded(request: Any, *, share_outputs: bool) -> None:
        infer(request, share_outputs=share_outputs)
        seen.append((int(request._tensors["block_indices"][0]), request._output.tobytes()))

    monkeypatch.setattr(fake_openvino.Request, "infer", recorded)
    for index in range(3):
        layer._put_back(index)
    layer._next = 0
    for _ in range(6):
        layer._call()
    assert [first for first, _ in seen] == [0, 3, 6, 0, 3, 6]
    assert len({output for _, output in seen[:3]}) == len({output for _, output in seen[3:]}) == 1
    for pool, pristine in zip(layer._pools, layer._pristine, strict=True):
        assert (pool == pristine).all()


@pytest.mark.usefixtures("_fake")
def test_the_ring_has_the_bytes_asked_for_and_counts_those_of_one_cache() -> None:
    layer = PagedLayer(openvino_contender("f16", "float32"), GEOMETRY, Setting(90, 1, 5, 1), ring_bytes=200_000)
    # 88 + 5 tokens: three blocks of keys and of values, 16 bits.
    assert layer.capacity == 96
    assert layer.cache_bytes == 2 * 2 * 96 * 2 * 40
    assert [pool.shape for pool in layer._pools] == [(7, 2 * 96 * 2 * 40)] * 2


def test_precisions_that_openvino_replaces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", fake_openvino.package(cache="f32"))
    monkeypatch.setattr(openvino_paged, "model", lambda geometry: geometry)
    with pytest.raises(DeltaLLMError, match="runs on this machine with f32, f32, bf16 instead of bf16, bf16, bf16"):
        PagedLayer(openvino_contender("bf16", "bfloat16"), GEOMETRY, Setting(90, 1, 5, 1))


def test_times_of_another_computation_are_refused() -> None:
    def result(name: str, error: float) -> dict[str, Any]:
        return {"past_tokens": 90, "new_tokens": 1, "contenders": [{"name": name, "relative_error": error}]}

    check_errors(result("OpenVINO u8 cache, float32", 8e-3))
    check_errors(result("ours int4", 0.15))
    for wrong in (0.5, float("nan")):
        with pytest.raises(DeltaLLMError, match=r"OpenVINO u8 cache, float32 is .* away from float32 attention at 90"):
            check_errors(result("OpenVINO u8 cache, float32", wrong))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--past", "64"], "past is 64: decode is measured from 65 tokens on"),
        (["--prompt", "1"], "A prompt of 1 tokens is none"),
        (["--threads", "0"], "Threads are counted from 1"),
        (["--record", "no/such/folder"], "There is no folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        parse(arguments)


@pytest.mark.usefixtures("_fake")
def test_the_command_writes_a_record_that_gives_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(openvino_peer.GEOMETRIES, "Llama-3.2-1B", GEOMETRY)
    monkeypatch.setattr(openvino_peer, "RING_BYTES", 1)
    monkeypatch.setattr(openvino_peer, "machine_rates", lambda _: None)
    only = [PEERS[0], openvino_contender("f16", "float32"), delta("float32")]
    monkeypatch.setattr(openvino_peer, "contenders", lambda **_: only)
    openvino_peer.main(["--past", "70", "166", "--prompt", "3", "35", "--seconds", "0", "--record", str(tmp_path)])
    record = json.loads((tmp_path / "openvino-toy.json").read_text())
    assert [(r["past_tokens"], r["new_tokens"]) for r in record["results"]] == [(70, 1), (166, 1), (0, 3), (0, 35)]
    assert record["openvino"] == "0.0.0-fake"
    assert all(not result["unavailable"] for result in record["results"])
    shown = capsys.readouterr().out
    assert "| µs at 70 | µs at 166 | ns per past token |" in shown
    assert "| µs at 3 | µs at 35 | ns per query and key |" in shown
