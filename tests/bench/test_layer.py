"""The contenders of the one-layer benchmark compute the same attention, on caches that are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest

from bench.attention import DECODE_SPAN, entries, settings
from bench.attention import parse as parse_arguments
from bench.contenders import DECODE, OVERHEAD, PEERS, PREFILL, SCALING, Contender, capacity_for, delta, prefill
from bench.geometry import GEOMETRIES, Geometry
from bench.layer import Layer, Setting
from bench.past import one_head_caches, rows
from deltallm_onnx.errors import DeltaLLMError

GEOMETRY = Geometry("toy", 6, 2, 32)
GQA = PEERS[0]
RING = 1 << 16


def layer(contender: Contender, setting: Setting) -> Layer:
    return Layer(contender, GEOMETRY, setting, ring_bytes=RING)


def test_names_are_unique_within_a_suite_and_comparisons_find_their_other() -> None:
    for suite in (DECODE, PREFILL, OVERHEAD, SCALING):
        names = [contender.name for contender in suite]
        assert len(set(names)) == len(names)
        assert {contender.against for contender in suite} - {None} <= set(names)


@pytest.mark.parametrize(
    "setting", [Setting(230, 1, 4, 1), Setting(0, 45, 0, 1), Setting(170, 21, 1, 1)], ids=["decode", "prompt", "chunk"]
)
@pytest.mark.parametrize(
    ("contender", "tolerance"),
    [
        # Two float32 kernels over the same rows; half precision has 11 bits; quantised codes are steps of the range.
        (delta("float32"), 2e-6),
        (delta("float16"), 1e-3),
        (PEERS[1], 3e-2),
        (PEERS[2], 4e-1),
        (delta("int8"), 2e-2),
        (delta("int4"), 2e-1),
    ],
    ids=lambda value: value.name if isinstance(value, Contender) else "",
)
def test_every_contender_attends_to_the_same_rows(contender: Contender, tolerance: float, setting: Setting) -> None:
    exact, _ = layer(GQA, setting).probe()
    output, _ = layer(contender, setting).probe()
    assert output.shape == (1, setting.new, 6 * 32)
    assert np.linalg.norm(output - exact) <= tolerance * np.linalg.norm(exact)


def test_the_prompt_of_a_contender_can_be_read_again_and_again() -> None:
    setting = Setting(0, 45, 0, 1)
    for contender in (delta("float32"), delta("int8"), prefill("int4", "bfloat16")):
        one = layer(contender, setting)
        one.turn()
        first = one._output.numpy().copy()
        one.turn()
        np.testing.assert_array_equal(one._output.numpy(), first)


def test_decode_steps_walk_through_the_span_and_begin_again() -> None:
    setting = Setting(past=200, new=1, span=6, threads=1)
    assert (setting.first_past, setting.longest) == (197, 203)
    one = Layer(delta("float32"), GEOMETRY, setting, ring_bytes=1)  # a ring of one cache
    one._ring[0]._put_back()
    lengths = []
    for _ in range(14):
        lengths.append(int(one._lengths[one._ring[0].calls]["total"].numpy()[0]))
        one._call()
    assert lengths == [*range(198, 204), *range(198, 204), 198, 199]


def test_a_cache_is_put_back_as_it_was() -> None:
    one = Layer(delta("float32"), GEOMETRY, Setting(past=200, new=1, span=6, threads=1), ring_bytes=1)
    one._ring[0]._put_back()
    for _ in range(3):
        one._call()
    written = one._ring[0]._arrays[0][0, :, 197:200]
    assert written.any()
    for _ in range(3):
        one._call()
    for array, pristine in zip(one._ring[0]._arrays, one._pristine, strict=True):
        np.testing.assert_array_equal(array, pristine)


def test_a_repeated_step_stays_where_it_is() -> None:
    repeated = delta("float32", ", repeated step", repeated=True)
    one = Layer(repeated, GEOMETRY, Setting(past=200, new=1, span=6, threads=1), ring_bytes=1)
    for _ in range(4):
        one._call()
    assert one._ring[0]._arrays[0][0, :, 197].any()
    assert not one._ring[0]._arrays[0][0, :, 198:].any()


def test_a_ring_is_as_long_as_its_bytes_ask_for() -> None:
    setting = Setting(past=100, new=1, span=2, threads=1)
    bytes_of_one = 2 * 2 * 32 * 4 * setting.longest
    ring = Layer(GQA, GEOMETRY, setting, ring_bytes=5 * bytes_of_one - 1)
    assert ring.cache_bytes == bytes_of_one
    assert len(ring._ring) == 5
    addresses = {array.ctypes.data for cached in ring._ring for array in cached._arrays}
    assert len(addresses) == 10


def test_paired_rows_repeat_and_others_do_not() -> None:
    paired = rows(9, 5, 3, paired=True)[0]
    assert paired.shape == (9, 5)
    np.testing.assert_array_equal(paired[0:8:2], paired[1:8:2])
    assert (paired[1:7:2] != paired[2:8:2]).all()
    plain = rows(9, 5, 3)[0]
    assert len(np.unique(plain[:, 0])) == 9


@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_half_held_halves_what_is_coded(cache: str) -> None:
    past = 900
    setting = Setting(past, 1, 1, 1)
    coded = past + 1 - 4 - 128
    held, plain = (layer(delta(cache, half_held=half), setting).probe()[1] for half in (True, False))
    assert held is not None
    assert plain is not None
    # One row leaves the window in this call; it is the second of its pair if the rows before are even in number.
    assert held[:, 7].sum() < plain[:, 7].sum()
    merged = (plain[0, 2] - held[0, 2] + held[0, 3] + plain[0, 3]) / plain[0, 2]
    assert merged == pytest.approx(coded / 2 / (past + 1), abs=2 / past)


@pytest.mark.parametrize("contender", [*PEERS, delta("float32"), delta("float16")], ids=lambda c: c.name)
def test_a_filled_cache_holds_its_rows_and_nothing_behind(contender: Contender) -> None:
    past, capacity = 37, 52
    for cache in one_head_caches(contender, GEOMETRY, past, capacity):
        assert cache.shape[:3] == (1, 1, capacity)
        assert all(cache[0, 0, t].any() for t in range(past))
        assert not cache[0, 0, past:].any()


def test_an_int4_capacity_has_room_for_the_eight_bit_rows() -> None:
    geometry = GEOMETRIES["Llama-3.2-1B"]
    # docs/cache-format.md: N = 272 rows of 68 bytes lie before the blocks; 36 bytes per token. From token
    # 4 + 128 + 129 on there is a block.
    assert capacity_for(delta("int4"), geometry, 260) == -(-260 * 68 // 36)
    assert capacity_for(delta("int4"), geometry, 261) == -(-(272 * 68 + 128 * 36) // 36)
    assert capacity_for(delta("int4"), geometry, 16384) == -(-(272 * 68 + 126 * 128 * 36) // 36)
    assert capacity_for(delta("int8"), geometry, 5) == 5
    assert capacity_for(PEERS[2], geometry, 5) == 5


def test_suites_cover_what_was_asked_for() -> None:
    options = parse_arguments(["decode", "--past", "256", "700", "--threads", "1", "2"])
    found = settings("decode", options)
    assert [(s.past, s.threads, s.new, s.span) for s in found] == [
        (past, threads, 1, DECODE_SPAN) for threads in (1, 2) for past in (256, 700)
    ]
    (scaling,) = settings("scaling", parse_arguments(["scaling", "--past", "700", "--threads", "1", "2"]))
    assert [(name, s.threads, s.wall) for name, _, s in entries("scaling", scaling, ["ours int8"])] == [
        ("ours int8, one thread", 1, True),
        ("ours int8", 2, True),
    ]
    prompts = settings("prompt", parse_arguments(["prompt", "--prompt", "1", "70", "--threads", "1"]))
    assert [(s.past, s.new) for s in prompts] == [(0, 1), (0, 70)]
    (chunk,) = settings("chunk", parse_arguments(["chunk", "--chunk", "300", "70", "--threads", "1"]))
    assert (chunk.past, chunk.new, chunk.longest) == (300, 70, 370)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["decode", "--past", "0"], "counted from 1"),
        (["decode", "--past", "64"], "past is 64: decode is measured from 65 tokens on"),
        (["decode", "--record", "no/such/folder"], "There is no folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], sentence: str) -> None:
    with pytest.raises(DeltaLLMError, match=sentence):
        parse_arguments(arguments)
